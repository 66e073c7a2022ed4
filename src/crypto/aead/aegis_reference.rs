//! AEGIS-256X4, written from RFC 10032 in safe code, slowly and plainly: the measure of
//! libaegis.
//!
//! The AES round is that of the crate `aes`, which works in constant time without tables where the
//! processor has no instruction for it. The key lies in locked pages; a message's state is zeroed.

use aes::Block;
use aes::hazmat::cipher_round;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use crate::error::Result;
use crate::secret::SecretBytes;

use super::libaegis::{LONG_NONCE, padded};
use super::{Aead, Forged, KEY_LEN, NONCE_LEN, Opened, TAG_LEN};

/// The degree: how many AEGIS-256 states run side by side.
const D: usize = 4;
const BLOCK: usize = 16;
/// Bytes absorbed by one update (the draft's R).
const RATE: usize = D * BLOCK;

/// The draft, "Constants": the Fibonacci sequence modulo 256.
const C0: [u8; BLOCK] =
    [0x00, 0x01, 0x01, 0x02, 0x03, 0x05, 0x08, 0x0d, 0x15, 0x22, 0x37, 0x59, 0x90, 0xe9, 0x79, 0x62];
const C1: [u8; BLOCK] =
    [0xdb, 0x3d, 0x18, 0x55, 0x6d, 0xc2, 0x2f, 0xf1, 0x20, 0x11, 0x31, 0x42, 0x73, 0xb5, 0x28, 0xdd];

/// AEGIS-256X4 with 128-bit tags.
pub(super) fn aegis_256x4(key: &[u8; KEY_LEN]) -> Result<Box<dyn Aead>> {
    Ok(Box::new(Reference { key: SecretBytes::copy_of(key)? }))
}

struct Reference {
    key: SecretBytes,
}

impl Reference {
    fn message(&self, nonce: &[u8; LONG_NONCE], aad: &[u8]) -> State {
        let mut state = State::new(self.key.expose(), nonce);
        aad.chunks(RATE).for_each(|part| state.update(&padded_with_zeroes(part)));
        state
    }

    fn seal_long(&self, nonce: &[u8; LONG_NONCE], aad: &[u8], data: &mut [u8]) -> [u8; TAG_LEN] {
        let mut state = self.message(nonce, aad);
        for part in data.chunks_mut(RATE) {
            let plain = padded_with_zeroes(part);
            xor(part, &state.key_stream());
            state.update(&plain);
        }
        state.tag(aad.len(), data.len())
    }

    /// The tag that the ciphertext should have; `data` becomes plaintext whatever its tag is.
    fn open_long(&self, nonce: &[u8; LONG_NONCE], aad: &[u8], data: &mut [u8]) -> [u8; TAG_LEN] {
        let mut state = self.message(nonce, aad);
        for part in data.chunks_mut(RATE) {
            xor(part, &state.key_stream());
            state.update(&padded_with_zeroes(part));
        }
        state.tag(aad.len(), data.len())
    }
}

impl Aead for Reference {
    fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], data: &mut [u8]) -> Result<[u8; TAG_LEN]> {
        Ok(self.seal_long(&padded(nonce), aad, data))
    }

    fn open(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], data: &mut [u8], tag: &[u8; TAG_LEN]) -> Opened {
        let expected = self.open_long(&padded(nonce), aad, data);
        if bool::from(expected.ct_eq(tag)) { Ok(()) } else { Err(Forged) }
    }

    fn name(&self) -> &'static str {
        "aegis-256x4, portable"
    }
}

/// The draft, "State": `V[0..6]`, each of D blocks.
struct State {
    v: [[u8; RATE]; 6],
}

impl State {
    /// The draft, "The Init Function" of AEGIS-256X.
    fn new(key: &[u8], nonce: &[u8; LONG_NONCE]) -> Self {
        let half = |bytes: &[u8], number: usize| {
            let mut half = [0; BLOCK];
            half.copy_from_slice(&bytes[number * BLOCK..][..BLOCK]);
            half
        };
        let (mut k0, mut k1) = (half(key, 0), half(key, 1));
        let (mut k0_n0, mut k1_n1) = (sum(&k0, &half(nonce, 0)), sum(&k1, &half(nonce, 1)));
        let blocks = [k0_n0, k1_n1, C1, C0, sum(&k0, &C0), sum(&k1, &C1)];
        let mut state = Self { v: blocks.map(|block| repeated(&block)) };
        for _ in 0..4 {
            for block in [&k0, &k1, &k0_n0, &k1_n1] {
                state.separate_lanes();
                state.update(&repeated(block));
            }
        }
        [&mut k0, &mut k1, &mut k0_n0, &mut k1_n1].into_iter().for_each(Zeroize::zeroize);
        state
    }

    /// Adds the contexts, which make the D lanes differ.
    fn separate_lanes(&mut self) {
        const CONTEXTS: [u8; D] = [0, 1, 2, 3];
        for (lane, context) in CONTEXTS.into_iter().enumerate() {
            for row in [3, 5] {
                self.v[row][lane * BLOCK] ^= context;
                self.v[row][lane * BLOCK + 1] ^= CONTEXTS[D - 1];
            }
        }
    }

    /// The draft, "The Update Function": one AES round for each block, keyed by the next.
    fn update(&mut self, message: &[u8; RATE]) {
        let old = self.v;
        for (row, new) in self.v.iter_mut().enumerate() {
            let (from, key) = (&old[(row + 5) % 6], &old[row]);
            for lane in (0..RATE).step_by(BLOCK) {
                let mut block = Block::default();
                block.copy_from_slice(&from[lane..lane + BLOCK]);
                let mut round_key = Block::default();
                round_key.copy_from_slice(&key[lane..lane + BLOCK]);
                if row == 0 {
                    xor(&mut round_key, &message[lane..lane + BLOCK]);
                }
                cipher_round(&mut block, &round_key);
                new[lane..lane + BLOCK].copy_from_slice(&block);
            }
        }
    }

    /// The draft, "The Enc Function": `z = V[1] ^ V[4] ^ V[5] ^ (V[2] & V[3])`.
    fn key_stream(&self) -> [u8; RATE] {
        std::array::from_fn(|n| {
            let [_, v1, v2, v3, v4, v5] = self.v.each_ref().map(|row| row[n]);
            v1 ^ v4 ^ v5 ^ (v2 & v3)
        })
    }

    /// The draft, "The Finalize Function", for 128-bit tags.
    fn tag(mut self, aad_len: usize, data_len: usize) -> [u8; TAG_LEN] {
        let bits = |len: usize| (len as u64).wrapping_mul(8).to_le_bytes();
        let mut lengths = [0; BLOCK];
        lengths[..8].copy_from_slice(&bits(aad_len));
        lengths[8..].copy_from_slice(&bits(data_len));
        let mut message = repeated(&lengths);
        xor(&mut message, &self.v[3]);
        for _ in 0..7 {
            self.update(&message);
        }
        let mut tag = [0; TAG_LEN];
        self.v.iter().flat_map(|row| row.chunks_exact(BLOCK)).for_each(|block| xor(&mut tag, block));
        tag
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.v.zeroize();
    }
}

fn repeated(block: &[u8; BLOCK]) -> [u8; RATE] {
    std::array::from_fn(|n| block[n % BLOCK])
}

fn sum(a: &[u8; BLOCK], b: &[u8; BLOCK]) -> [u8; BLOCK] {
    std::array::from_fn(|n| a[n] ^ b[n])
}

fn xor(into: &mut [u8], with: &[u8]) {
    into.iter_mut().zip(with).for_each(|(into, with)| *into ^= with);
}

fn padded_with_zeroes(part: &[u8]) -> [u8; RATE] {
    let mut whole = [0; RATE];
    whole[..part.len()].copy_from_slice(part);
    whole
}

#[cfg(test)]
mod tests {
    use super::super::tests::unhex;
    use super::*;
    use aegis::aegis256x4::Aegis256X4;

    /// RFC 10032, "AEGIS-256X4 Test Vectors", 1 and 2; and that the library agrees.
    #[test]
    fn the_drafts_vectors() {
        let key: [u8; 32] = std::array::from_fn(|n| u8::try_from(n).unwrap());
        let nonce: [u8; 32] = std::array::from_fn(|n| u8::try_from(n + 16).unwrap());
        let reference = Reference { key: SecretBytes::copy_of(&key).unwrap() };
        let plain: Vec<u8> = [4, 5, 6, 7].into_iter().cycle().take(120).collect();
        let plain = [&plain[..], &[]].concat();
        for (aad, plain, cipher, tag) in [
            (vec![], vec![], String::new(), "3b7fee6cee7bf17888ad11ed2397beb4"),
            (
                unhex("0102030401020304"),
                plain,
                "bfc2085b7e8017da99b0b6d646ae4d01f4ba8f2e7dfca1d759ae48a135139b9a\
                 aac6b4f5db810d426be1fdaff4e1454153a34b11da78ed7e418ee2ee9853042e\
                 95536aecbb694cea1b16a478eb0d4d1bf6509b1ce652a45af58e0e46ffccfa2d\
                 0426e702391d2ff5813808b81748a490dd656465fed61f09"
                    .to_owned(),
                "b63b611b13975e2f3dc3cb6c2397bfcd",
            ),
        ] {
            let mut data = plain.clone();
            assert_eq!(reference.seal_long(&nonce, &aad, &mut data)[..], unhex(tag));
            assert_eq!(data, unhex(&cipher));
            assert_eq!(reference.open_long(&nonce, &aad, &mut data)[..], unhex(tag));
            assert_eq!(data, plain);
            let (by_library, its_tag) = Aegis256X4::<16>::new(&key, &nonce).encrypt(&plain, &aad);
            assert_eq!((by_library, its_tag.to_vec()), (unhex(&cipher), unhex(tag)));
        }
    }
}
