//! AES-256-GCM by `ring`, for CPUs that have wide AES instructions but no AVX-512: there AWS-LC goes block by
//! block, and `ring` (whose code for them is BoringSSL's) is nearly twice as fast.
//!
//! The library does not erase its key schedule. It lies in this file's box, and is overwritten here; what its
//! making left on the stack is not, like what any call leaves there.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};

use crate::error::{Error, ErrorKind, Result};

use super::{Aead, Forged, KEY_LEN, NONCE_LEN, Opened, TAG_LEN, cannot_seal};

/// Whether this is such a CPU.
pub(super) fn is_faster_here() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
        has!("vaes") && has!("vpclmulqdq") && has!("avx2") && !avx512
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// AES-256-GCM.
pub(super) fn gcm(key: &[u8; KEY_LEN]) -> Result<Box<dyn Aead>> {
    Ok(Box::new(Ring { key: Box::new(schedule(key)?) }))
}

fn schedule(key: &[u8; KEY_LEN]) -> Result<LessSafeKey> {
    let key = UnboundKey::new(&AES_256_GCM, key);
    let key = key.map_err(|_| Error::new(ErrorKind::InvalidInput, "the cipher library refuses a key"))?;
    Ok(LessSafeKey::new(key))
}

struct Ring {
    /// "Less safe" because the caller chooses the nonces, as a format that stores them must.
    key: Box<LessSafeKey>,
}

impl Drop for Ring {
    /// Overwrites the schedule with another key's.
    fn drop(&mut self) {
        if let Ok(nobodys) = schedule(&[0; KEY_LEN]) {
            *self.key = nobodys;
            // Or the compiler would see that nobody reads it.
            std::hint::black_box(&mut self.key);
        }
    }
}

impl Aead for Ring {
    fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], data: &mut [u8]) -> Result<[u8; TAG_LEN]> {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::from(aad), data);
        let tag = tag.ok().and_then(|tag| tag.as_ref().try_into().ok());
        tag.ok_or_else(|| cannot_seal(data.len()))
    }

    fn open(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], data: &mut [u8], tag: &[u8; TAG_LEN]) -> Opened {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        match self.key.open_in_place_separate_tag(nonce, Aad::from(aad), Tag::from(*tag), data, 0..) {
            Ok(_) => Ok(()),
            Err(_) => Err(Forged),
        }
    }

    fn name(&self) -> &'static str {
        "aes-256-gcm, ring"
    }
}
