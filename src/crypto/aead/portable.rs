//! AES-256-GCM and AES-256-GCM-SIV by the crates `aes-gcm` and `aes-gcm-siv`: safe code on every machine,
//! the measure of the others.
//!
//! Their key schedules are zeroed on drop, and are locked into memory here.

use std::ptr::NonNull;

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::consts::{U12, U16};
use aes_gcm::aead::{AeadCore, AeadInOut, KeyInit};
use aes_gcm_siv::Aes256GcmSiv;

use crate::error::Result;
use crate::secret::lock_in_place;

use super::{Aead, Forged, KEY_LEN, NONCE_LEN, Opened, TAG_LEN, cannot_seal};

/// AES-256-GCM.
pub(super) fn gcm(key: &[u8; KEY_LEN]) -> Box<dyn Aead> {
    boxed(Portable { cipher: Aes256Gcm::new(key.into()), name: "aes-256-gcm, portable" })
}

/// AES-256-GCM-SIV.
pub(super) fn gcm_siv(key: &[u8; KEY_LEN]) -> Box<dyn Aead> {
    boxed(Portable { cipher: Aes256GcmSiv::new(key.into()), name: "aes-256-gcm-siv, portable" })
}

struct Portable<C> {
    cipher: C,
    name: &'static str,
}

/// Puts a cipher, and the key schedule within it, where they stay, and locks them there.
fn boxed<C>(cipher: Portable<C>) -> Box<dyn Aead>
where
    Portable<C>: Aead + 'static,
{
    let cipher = Box::new(cipher);
    lock_in_place(NonNull::from(&*cipher).cast(), size_of::<Portable<C>>());
    cipher
}

impl<C> Aead for Portable<C>
where
    C: AeadInOut + AeadCore<NonceSize = U12, TagSize = U16> + Send + Sync,
{
    fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], data: &mut [u8]) -> Result<[u8; TAG_LEN]> {
        let len = data.len();
        let tag = self.cipher.encrypt_inout_detached(nonce.into(), aad, data.into());
        tag.map(Into::into).map_err(|_| cannot_seal(len))
    }

    fn open(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], data: &mut [u8], tag: &[u8; TAG_LEN]) -> Opened {
        let opened = self.cipher.decrypt_inout_detached(nonce.into(), aad, data.into(), tag.into());
        opened.map_err(|_| Forged)
    }

    fn name(&self) -> &'static str {
        self.name
    }
}
