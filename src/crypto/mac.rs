//! Message authentication: HMAC-SHA-256 (RFC 2104) with keys that know what they are for.

use std::marker::PhantomData;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::error::{Error, ErrorKind, Result};
use crate::secret::SecretBytes;

/// Bytes of a code.
pub const MAC_LEN: usize = 32;

/// A key for HMAC-SHA-256 that authenticates `For`, and nothing else: keys for different things have
/// different types, so that none is ever used for another's. It lies in locked memory, and has neither
/// `Clone` nor `Debug`.
pub struct MacKey<For> {
    key: SecretBytes,
    purpose: PhantomData<fn(For)>,
}

impl<For> MacKey<For> {
    /// Takes the key.
    pub fn new(key: SecretBytes) -> Self {
        Self { key, purpose: PhantomData }
    }

    /// The code of `parts` as one message.
    ///
    /// # Errors
    /// None that can happen: HMAC takes keys of every length.
    pub fn sign(&self, parts: &[&[u8]]) -> Result<[u8; MAC_LEN]> {
        let mac = Hmac::<Sha256>::new_from_slice(self.key.expose());
        let mut mac = mac.map_err(|e| Error::new(ErrorKind::InvalidInput, "no key for HMAC").because(e))?;
        parts.iter().for_each(|part| mac.update(part));
        Ok(mac.finalize().into_bytes().into())
    }

    /// Whether `code` is that of `parts`, in time that does not depend on where it differs.
    ///
    /// # Errors
    /// As [`Self::sign`].
    pub fn verify(&self, parts: &[&[u8]], code: &[u8; MAC_LEN]) -> Result<bool> {
        Ok(self.sign(parts)?.ct_eq(code).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4231, test cases 2 and 6.
    #[test]
    fn it_is_the_standards() {
        let key = |bytes: &[u8]| MacKey::<()>::new(SecretBytes::copy_of(bytes).unwrap());
        let code = key(b"Jefe").sign(&[b"what do ya want ", b"for nothing?"]).unwrap();
        assert_eq!(code[..8], [0x5b, 0xdc, 0xc1, 0x46, 0xbf, 0x60, 0x75, 0x4e]);
        assert_eq!(code[24..], [0x9d, 0xec, 0x58, 0xb9, 0x64, 0xec, 0x38, 0x43]);
        let message = b"Test Using Larger Than Block-Size Key - Hash Key First";
        let code = key(&[0xaa; 131]).sign(&[message]).unwrap();
        assert_eq!(code[..8], [0x60, 0xe4, 0x31, 0x59, 0x1e, 0xe0, 0xb6, 0x7f]);
    }

    #[test]
    fn every_bit_of_a_code_counts() {
        let key = MacKey::<()>::new(SecretBytes::copy_of(&[7; 32]).unwrap());
        let code = key.sign(&[b"message"]).unwrap();
        assert!(key.verify(&[b"mess", b"age"], &code).unwrap());
        assert!(!key.verify(&[b"massage"], &code).unwrap());
        for bit in 0..256 {
            let mut forged = code;
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.verify(&[b"message"], &forged).unwrap());
        }
    }
}
