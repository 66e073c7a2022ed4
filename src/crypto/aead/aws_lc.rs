//! AES-256-GCM and AES-256-GCM-SIV by AWS-LC, through `aws-lc-rs`.
//!
//! One key schedule serves all threads: the library only reads it. It zeroes the schedule when it frees
//! it. Its address is not told, so it is not locked into memory.

use aws_lc_rs::aead::{AES_256_GCM, AES_256_GCM_SIV, Aad, Algorithm, LessSafeKey, Nonce, UnboundKey};

use crate::error::{Error, ErrorKind, Result};

use super::{Aead, Forged, KEY_LEN, NONCE_LEN, Opened, TAG_LEN, cannot_seal};

/// AES-256-GCM.
pub(super) fn gcm(key: &[u8; KEY_LEN]) -> Result<Box<dyn Aead>> {
    keyed(&AES_256_GCM, key, "aes-256-gcm, AWS-LC")
}

/// AES-256-GCM-SIV.
pub(super) fn gcm_siv(key: &[u8; KEY_LEN]) -> Result<Box<dyn Aead>> {
    keyed(&AES_256_GCM_SIV, key, "aes-256-gcm-siv, AWS-LC")
}

fn keyed(algorithm: &'static Algorithm, key: &[u8; KEY_LEN], name: &'static str) -> Result<Box<dyn Aead>> {
    let key = UnboundKey::new(algorithm, key)
        .map_err(|e| Error::new(ErrorKind::OutOfMemory, "no memory for a cipher's key").because(e))?;
    Ok(Box::new(AwsLc { key: LessSafeKey::new(key), name }))
}

struct AwsLc {
    /// "Less safe" because the caller chooses the nonces, as a format that stores them must.
    key: LessSafeKey,
    name: &'static str,
}

impl Aead for AwsLc {
    fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], data: &mut [u8]) -> Result<[u8; TAG_LEN]> {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::from(aad), data);
        let tag = tag.ok().and_then(|tag| tag.as_ref().try_into().ok());
        tag.ok_or_else(|| cannot_seal(data.len()))
    }

    fn open(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], data: &mut [u8], tag: &[u8; TAG_LEN]) -> Opened {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        match self.key.open_in_place_separate_tag(nonce, Aad::from(aad), tag, data) {
            Ok(_) => Ok(()),
            Err(_) => Err(Forged),
        }
    }

    fn name(&self) -> &'static str {
        self.name
    }
}
