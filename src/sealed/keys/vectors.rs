//! The test vectors of docs/sealed-keys.md, computed anew and compared with what stands there.

use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::anchor::{AnchorMode, Record};
use crate::crypto::{KdfAlgorithm, Suite};
use crate::env::Entropy;
use crate::error::Result;
use crate::sealed::header::fields::Header;
use crate::sealed::header::slot::{Slot, SlotSecret};
use crate::sealed::{Binding, EpochNumber, SLOTS};
use crate::secret::{Passphrase, SecretBytes, VolumeKey};

use super::schedule::{FreshSalt, KeySchedule, MountInputs, VolumeId};

const PAGE: &str = include_str!("../../../docs/sealed-keys.md");
const CHEAP: KdfAlgorithm = KdfAlgorithm::Argon2id { time: 1, memory_kib: 8, lanes: 1 };

fn counting<const N: usize>(first: u8) -> [u8; N] {
    std::array::from_fn(|n| first + u8::try_from(n).unwrap())
}

/// Gives out `first, first + 1, ..`, and goes on there the next time.
struct Counting(std::sync::atomic::AtomicU8);

impl Counting {
    fn from(first: u8) -> Self {
        Self(first.into())
    }
}

impl Entropy for Counting {
    fn fill(&self, into: &mut [u8]) -> Result<()> {
        into.fill_with(|| self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        Ok(())
    }
}

/// Pairs of name and hexadecimal digits.
#[derive(Default)]
struct Vectors(Vec<(String, String)>);

impl Vectors {
    fn add(&mut self, name: impl Into<String>, bytes: &[u8]) {
        let digits = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
        self.0.push((name.into(), digits));
    }
}

fn volume(suite: Suite) -> VolumeId {
    VolumeId { uuid: Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff), suite }
}

fn schedule(suite: Suite) -> KeySchedule {
    KeySchedule::new(volume(suite), &volume_key()).unwrap()
}

fn volume_key() -> VolumeKey {
    VolumeKey::new(SecretBytes::copy_of(&counting::<32>(0)).unwrap())
}

fn add_keys(vectors: &mut Vectors) {
    let keys = schedule(Suite::Aes256Gcm);
    for name in ["hdr-mac", "sb-mac", "anchor-mac"] {
        vectors.add(name, keys.expand(&[name.as_bytes()]).unwrap().expose());
    }
    let epoch = [&b"epoch"[..], &5_u32.to_le_bytes(), &counting::<32>(0x20)];
    vectors.add("epoch-key", keys.expand(&epoch).unwrap().expose());
    let inputs = MountInputs {
        previous_salt: counting(0x80),
        tail_tag: counting(0xa0),
        realtime_ns: 1,
        boottime_ns: 2,
    };
    vectors.add("salt", &keys.draw_salt(&inputs, &Counting::from(0x60)).unwrap().bytes());
}

fn add_sealed(vectors: &mut Vectors) {
    for suite in Suite::ALL {
        let keys = schedule(suite);
        let salt = FreshSalt::for_tests(counting(0x20));
        let writer = keys.new_epoch(EpochNumber::new(5).unwrap(), salt).unwrap();
        let mut versions = writer.fresh_versions(11).unwrap().skip(9);
        let journal = Binding::journal(&keys.volume(), &[1; 48], &[2; 16]);
        for (name, binding) in [("block", Binding::data(&keys.volume(), 7)), ("journal", journal)] {
            let mut data = [0x5a; 16];
            let (_, tag) = writer.seal(versions.next().unwrap(), &binding, &mut data).unwrap();
            vectors.add(format!("{name}-{suite}"), &data);
            vectors.add(format!("{name}-{suite}-tag"), &tag);
        }
    }
}

fn add_header(vectors: &mut Vectors) {
    let text = Passphrase::new(SecretBytes::copy_of(b"correct horse").unwrap());
    let id = volume(Suite::Aes256Gcm);
    let secret = (SlotSecret::Passphrase(&text), CHEAP);
    let limits = crate::sealed::header::fixtures::limits();
    let slot = Slot::wrap((&id, 0), &volume_key(), secret, &limits, &Counting::from(0x40)).unwrap();
    vectors.add("slot", &slot.encode()[..160]);
    let mut slots = [const { None }; SLOTS];
    slots[0] = Some(slot);
    let header = Header { volume: id, sequence: 1, key_generation: 1, anchor: AnchorMode::Strict, slots };
    let bytes = header.encode(&schedule(id.suite).header_mac().unwrap()).unwrap();
    vectors.add("header-hmac", &bytes[4064..]);
    vectors.add("header-digest", &Sha256::digest(&bytes[..]));
    let record = Record { uuid: id.uuid, generation: 3, sequence: 4, tag: counting(0) };
    let signed = record.sign(&schedule(id.suite).anchor_mac().unwrap()).unwrap();
    vectors.add("anchor-record", signed.bytes());
}

#[test]
fn the_documented_vectors_are_those_of_the_code() {
    let mut vectors = Vectors::default();
    let salt = [volume(Suite::Aes256Gcm).uuid.as_bytes(), &[1, 0, 0, 0, 1, 0, 0, 0][..]].concat();
    let (prk, _) = Hkdf::<Sha256>::extract(Some(&salt), &counting::<32>(0));
    vectors.add("prk", &prk);
    add_keys(&mut vectors);
    add_sealed(&mut vectors);
    add_header(&mut vectors);
    let block = PAGE.split("```vectors\n").nth(1).unwrap().split("```").next().unwrap();
    let mut documented: Vec<(String, String)> = Vec::new();
    for line in block.lines() {
        match line.split_once(' ') {
            Some(("", more)) => documented.last_mut().unwrap().1.push_str(more.trim()),
            Some((name, digits)) => documented.push((name.to_owned(), digits.trim().to_owned())),
            None => panic!("{line}"),
        }
    }
    assert_eq!(documented, vectors.0);
}
