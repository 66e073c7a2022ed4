//! The hash functions that LUKS headers name.

use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use zeroize::Zeroize;

/// A hash function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-1, 20 bytes. In key derivation and anti-forensic splitting its known collisions do not
    /// matter; we read it and never choose it.
    Sha1,
    /// SHA-256, 32 bytes.
    Sha256,
    /// SHA-512, 64 bytes.
    Sha512,
}

impl Hash {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sha1, Self::Sha256, Self::Sha512];

    /// Its name in LUKS headers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// The hash of that name in LUKS headers.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hash| hash.name() == name)
    }

    /// How many bytes a digest has.
    pub fn output_len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// Hashes `parts` as one message; `out` receives the digest's first bytes, at most all of them.
    /// Nothing of the digest stays elsewhere in memory.
    pub fn digest_into(self, parts: &[&[u8]], out: &mut [u8]) {
        match self {
            Self::Sha1 => digest_into::<Sha1>(parts, out),
            Self::Sha256 => digest_into::<Sha256>(parts, out),
            Self::Sha512 => digest_into::<Sha512>(parts, out),
        }
    }

    /// PBKDF2 (RFC 8018, 5.2) with HMAC of this hash; fills `out`.
    pub(super) fn pbkdf2(self, passphrase: &[u8], salt: &[u8], iterations: u32, out: &mut [u8]) {
        match self {
            Self::Sha1 => pbkdf2::pbkdf2_hmac::<Sha1>(passphrase, salt, iterations, out),
            Self::Sha256 => pbkdf2::pbkdf2_hmac::<Sha256>(passphrase, salt, iterations, out),
            Self::Sha512 => pbkdf2::pbkdf2_hmac::<Sha512>(passphrase, salt, iterations, out),
        }
    }
}

fn digest_into<D: Digest>(parts: &[&[u8]], out: &mut [u8]) {
    let mut hash = D::new();
    for part in parts {
        hash.update(part);
    }
    let mut digest = hash.finalize();
    let len = out.len().min(digest.len());
    out[..len].copy_from_slice(&digest[..len]);
    digest.as_mut_slice().zeroize();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-4's examples for "abc", their first eight bytes.
    #[test]
    fn digests_are_those_of_the_standard() {
        for (hash, expected) in [
            (Hash::Sha1, [0xa9, 0x99, 0x3e, 0x36, 0x47, 0x06, 0x81, 0x6a]),
            (Hash::Sha256, [0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea]),
            (Hash::Sha512, [0xdd, 0xaf, 0x35, 0xa1, 0x93, 0x61, 0x7a, 0xba]),
        ] {
            let mut digest = vec![0; hash.output_len()];
            hash.digest_into(&[b"a", b"", b"bc"], &mut digest);
            assert_eq!(digest[..8], expected, "{}", hash.name());
            assert_eq!(Hash::from_name(hash.name()), Some(hash));
        }
        assert_eq!(Hash::from_name("SHA256"), None);
    }

    #[test]
    fn a_short_output_gets_the_first_bytes() {
        let (mut whole, mut part) = ([0; 32], [0; 5]);
        Hash::Sha256.digest_into(&[b"abc"], &mut whole);
        Hash::Sha256.digest_into(&[b"abc"], &mut part);
        assert_eq!(part, whole[..5]);
    }
}
