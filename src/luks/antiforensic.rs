//! The anti-forensic splitter: a key spread over many stripes, so that it is lost as soon as a part
//! of them is (LUKS1 specification, 2.4, which LUKS2 keeps as `af` type `luks1`).
//!
//! With stripes s1 .. sn of the key's length: d0 = 0, dk = H(d(k-1) xor sk), key = d(n-1) xor sn.
//! H works on hunks of the hash's length, each for itself, so a lost part of a stripe costs the hunks
//! of the key that it belongs to: of 64 bytes with SHA-256, half.

use zeroize::Zeroize;

use crate::crypto::Hash;
use crate::env::Entropy;
use crate::error::{Error, ErrorKind, Result};
use crate::secret::SecretBytes;

/// Spreads `key` over `stripes` stripes.
pub(super) fn split(key: &[u8], stripes: u32, hash: Hash, entropy: &dyn Entropy) -> Result<SecretBytes> {
    let len = usize::try_from(stripes).ok().and_then(|n| n.checked_mul(key.len())).filter(|len| *len > 0);
    let len =
        len.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "a key of no bytes, or too many stripes"))?;
    let mut material = SecretBytes::random(len, entropy)?;
    let (random, last) = material.expose_mut().split_at_mut(len - key.len());
    let mixed = mix(random, key.len(), hash)?;
    last.copy_from_slice(key);
    xor(last, mixed.expose());
    Ok(material)
}

/// Puts the key of `key_len` bytes together again. A change to `material` changes the key.
pub(super) fn merge(material: &[u8], key_len: usize, hash: Hash) -> Result<SecretBytes> {
    let split = material.len().checked_sub(key_len).filter(|first| key_len > 0 && first % key_len == 0);
    let split =
        split.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "key material that is not whole stripes"))?;
    let (random, last) = material.split_at(split);
    let mut key = mix(random, key_len, hash)?;
    xor(key.expose_mut(), last);
    Ok(key)
}

/// d(n-1), from all stripes but the last.
fn mix(stripes: &[u8], key_len: usize, hash: Hash) -> Result<SecretBytes> {
    let mut mixed = SecretBytes::zeroed(key_len)?;
    for stripe in stripes.chunks_exact(key_len) {
        xor(mixed.expose_mut(), stripe);
        diffuse(mixed.expose_mut(), hash);
    }
    Ok(mixed)
}

/// H of the specification: each hunk of the hash's length becomes the hash of its number, in 32 bits
/// big-endian, and itself; the last hunk may be shorter, and so is what it becomes.
fn diffuse(block: &mut [u8], hash: Hash) {
    let mut digest = [0; 64];
    for (number, hunk) in (0_u32..).zip(block.chunks_mut(hash.output_len())) {
        let digest = &mut digest[..hunk.len()];
        hash.digest_into(&[&number.to_be_bytes(), hunk], digest);
        hunk.copy_from_slice(digest);
    }
    digest.zeroize();
}

fn xor(into: &mut [u8], other: &[u8]) {
    for (byte, other) in into.iter_mut().zip(other) {
        *byte ^= other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::OsEntropy;

    #[test]
    fn what_is_split_can_be_merged() {
        for hash in Hash::ALL {
            for (key_len, stripes) in [(64, 4000), (64, 1), (32, 2), (20, 7), (50, 13), (1, 1)] {
                let key: Vec<u8> = (0..key_len).collect();
                let material = split(&key, stripes, hash, &OsEntropy).unwrap();
                assert_eq!(material.len(), key.len() * stripes as usize);
                assert!(
                    merge(material.expose(), key.len(), hash).unwrap().equals(&key),
                    "{hash:?} {key_len}"
                );
            }
        }
    }

    #[test]
    fn one_changed_bit_loses_its_hunk_of_the_key() {
        let key: Vec<u8> = (0..64).collect();
        for changed in [0, 40 * 64 + 31, 98 * 64] {
            let mut material = split(&key, 100, Hash::Sha256, &OsEntropy).unwrap();
            material.expose_mut()[changed] ^= 1;
            let wrong = merge(material.expose(), 64, Hash::Sha256).unwrap();
            let same = wrong.expose()[..32].iter().zip(&key).filter(|(a, b)| a == b).count();
            assert!(same < 8, "{same} bytes of 32 survived a change at {changed}");
            assert_eq!(wrong.expose()[32..], key[32..], "the other hunk");
        }
    }

    #[test]
    fn parts_of_stripes_are_refused() {
        for (len, key_len) in [(0, 0), (63, 64), (65, 64), (5, 0), (0, 64)] {
            assert!(merge(&vec![0; len], key_len, Hash::Sha256).is_err(), "{len} {key_len}");
        }
        assert!(split(&[], 4000, Hash::Sha256, &OsEntropy).is_err());
        assert!(split(&[1], 0, Hash::Sha256, &OsEntropy).is_err());
    }

    /// By hand, for one stripe of zeroes and SHA-1: d1 = H(0), key = d1 xor s2.
    #[test]
    fn the_mixing_is_the_specifications() {
        let mut expected = [0; 30];
        Hash::Sha1.digest_into(&[&[0, 0, 0, 0], &[0; 20]], &mut expected[..20]);
        Hash::Sha1.digest_into(&[&[0, 0, 0, 1], &[0; 10]], &mut expected[20..]);
        xor(&mut expected, &[0xaa; 30]);
        let material = [[0; 30], [0xaa; 30]].concat();
        assert!(merge(&material, 30, Hash::Sha1).unwrap().equals(&expected));
    }
}
