//! AEGIS-256X4 by libaegis, the C library that the crate `aegis` brings: it uses the widest AES
//! instructions that it finds at run time.
//!
//! The key lies in locked pages of its own; every message expands it anew, on the stack.

use aegis::aegis256x4::Aegis256X4;

use crate::error::Result;
use crate::secret::SecretBytes;

use super::{Aead, Forged, KEY_LEN, NONCE_LEN, Opened, TAG_LEN};

/// AEGIS's nonce.
pub(super) const LONG_NONCE: usize = 32;

/// AEGIS-256X4 with 128-bit tags.
pub(super) fn aegis_256x4(key: &[u8; KEY_LEN]) -> Result<Box<dyn Aead>> {
    Ok(Box::new(Libaegis { key: SecretBytes::copy_of(key)? }))
}

struct Libaegis {
    key: SecretBytes,
}

impl Libaegis {
    fn message(&self, nonce: &[u8; NONCE_LEN]) -> Aegis256X4<TAG_LEN> {
        let mut key = zeroize::Zeroizing::new([0; KEY_LEN]);
        key.copy_from_slice(self.key.expose());
        Aegis256X4::new(&key, &padded(nonce))
    }
}

/// The format's nonce as AEGIS's: the 12 bytes, and zeroes.
pub(super) fn padded(nonce: &[u8; NONCE_LEN]) -> [u8; LONG_NONCE] {
    let mut long = [0; LONG_NONCE];
    long[..NONCE_LEN].copy_from_slice(nonce);
    long
}

impl Aead for Libaegis {
    fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], data: &mut [u8]) -> Result<[u8; TAG_LEN]> {
        Ok(self.message(nonce).encrypt_in_place(data, aad))
    }

    fn open(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], data: &mut [u8], tag: &[u8; TAG_LEN]) -> Opened {
        self.message(nonce).decrypt_in_place(data, tag, aad).map_err(|_| Forged)
    }

    fn name(&self) -> &'static str {
        "aegis-256x4, libaegis"
    }
}
