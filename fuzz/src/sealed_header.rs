//! Headers of sealed volumes as a hostile host writes them, and as one writes them that got hold of the
//! key. Checked is that a header which is read costs no more than the limits allow, that describing
//! and unlocking it end, that a volume opens with nothing but the header that its superblock pins, and that
//! nothing else is restored from a backup, since the volume has an anchor.
//!
//! Input: a byte that chooses between two. `'R'`: the bytes of copy A and then of copy B, as far as they
//! go. Otherwise changes to the two copies of a genuine header, three bytes each: where (16 bits, over
//! both copies) and what; with an odd choice, copy A gets a code of the key's afterwards.

use std::sync::LazyLock;

use hostveil::anchor::AnchorMode;
use hostveil::backing::{Backing, MemoryBacking};
use hostveil::crypto::{CostLimits, KdfAlgorithm, Suite};
use hostveil::env::{OsEntropy, Silent};
use hostveil::error::{Error, ErrorKind};
use hostveil::sealed::{
    self, CopyPlace, HEADER_LEN, HeaderBackup, HeaderPin, KeySchedule, NewHeader, NewSlot, RawHeader,
    SlotSecret, Unlocked, VolumeId,
};
use hostveil::secret::{Passphrase, SecretBytes};
use hostveil::units::ByteCount;

use super::input::Input;

const LIMITS: CostLimits = CostLimits { memory_kib: 64, kib_passes: 64, lanes: 4, iterations: 0 };
const CHEAP: KdfAlgorithm = KdfAlgorithm::Argon2id { time: 1, memory_kib: 8, lanes: 1 };
const MAC: usize = HEADER_LEN - 32;

type Copy = [u8; HEADER_LEN];

/// A volume that opens with a key, by slot 0, and with a passphrase, by slot 1.
struct Genuine {
    header: Box<Copy>,
    pin: HeaderPin,
    keys: KeySchedule,
    key: SecretBytes,
    passphrase: Passphrase,
}

static GENUINE: LazyLock<Genuine> = LazyLock::new(|| {
    let key = SecretBytes::copy_of(&[9; 32]).expect("memory");
    let passphrase = Passphrase::new(SecretBytes::copy_of(b"secret").expect("memory"));
    let volume = VolumeId {
        uuid: "0e2c6d5c-3f0e-4b5a-9d1c-2f6a8c1b7e44".parse().expect("a UUID"),
        suite: Suite::Aes256Gcm,
    };
    let slot = NewSlot { secret: SlotSecret::Key(&key), kdf: CHEAP, number: None };
    let new = NewHeader { volume, anchor: AnchorMode::Strict, slot, limits: LIMITS };
    let mut unlocked = sealed::create(&new, &OsEntropy, &Silent).expect("a header");
    let store = MemoryBacking::new(ByteCount(1 << 20));
    unlocked.store(&store).expect("a store");
    let slot = NewSlot { secret: SlotSecret::Passphrase(&passphrase), kdf: CHEAP, number: None };
    unlocked.add(&store, &slot, &mut |_| Ok(()), (&OsEntropy, &Silent)).expect("a second slot");
    let mut header = Box::new([0; HEADER_LEN]);
    store.read_at(CopyPlace::A.offset(), &mut header[..]).expect("copy A");
    Genuine { header, pin: unlocked.pin(), keys: unlocked.into_keys(), key, passphrase }
});

/// Runs the target.
pub fn sealed_header(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.byte();
    if choice == b'R' {
        let (a, b) = (input.array(), input.array());
        let (opened, _) = examine(&a, &b, GENUINE.pin);
        assert!(opened.is_none() || a == *GENUINE.header || b == *GENUINE.header);
        return;
    }
    let mut copies = [*GENUINE.header, *GENUINE.header];
    while !input.rest().is_empty() {
        let [high, low, value] = input.array();
        let at = usize::from(u16::from_be_bytes([high, low])) % (2 * HEADER_LEN);
        copies[at / HEADER_LEN][at % HEADER_LEN] = value;
    }
    if choice % 2 == 1 {
        sign(&mut copies[0]);
    }
    check(&copies);
}

/// What is accepted is the header that is pinned.
fn check([a, b]: &[Copy; 2]) {
    let (opened, _) = examine(a, b, GENUINE.pin);
    let whole = [a, b].into_iter().any(|copy| *copy == *GENUINE.header);
    assert_eq!(opened.is_some(), whole, "the genuine header opens, and no other");
    assert!(opened.is_none_or(|unlocked| unlocked.pin() == GENUINE.pin));
    restore(a, b);
    // Another one opens once it is pinned, if its code and a slot are right; then it can be changed.
    let pin =
        HeaderPin { sequence: u64::from_le_bytes(a[32..40].try_into().expect("8 bytes")), digest: digest(a) };
    if let (Some(mut unlocked), store) = examine(a, b, pin) {
        assert_eq!(unlocked.pin(), pin);
        let changed = unlocked.remove(&store, 1, &mut |_| Ok(()));
        let copies = [CopyPlace::A, CopyPlace::B].map(|place| {
            let mut copy = [0; HEADER_LEN];
            store.read_at(place.offset(), &mut copy).expect("a copy");
            copy
        });
        assert!(changed.is_err() || copies[0] == copies[1]);
    }
}

/// Copy A as a backup, given to a store with both: nothing is written, or the genuine header to both copies.
fn restore(a: &Copy, b: &Copy) {
    // Whoever has the key can say that there is no anchor, and pin what he likes.
    let anchored = a[44..48] != [0; 4];
    let Some(backup) = HeaderBackup::check(a, &LIMITS).ok().filter(|_| anchored) else { return };
    let store = MemoryBacking::new(ByteCount(1 << 20));
    for (place, copy) in CopyPlace::BOTH.into_iter().zip([a, b]) {
        store.write_at(place.offset(), copy).expect("a store");
    }
    let secret = (SlotSecret::Key(&GENUINE.key), true);
    let pin = |_: &KeySchedule, _: &HeaderPin| panic!("another header is brought back");
    let restored = backup.restore(&store, secret, |keys| genuine_pin(keys, GENUINE.pin), pin);
    assert_eq!(restored.is_ok(), *a == *GENUINE.header);
    let expected = if restored.is_ok() { [a, a] } else { [a, b] };
    for (place, expected) in CopyPlace::BOTH.into_iter().zip(expected) {
        let mut copy = [0; HEADER_LEN];
        store.read_at(place.offset(), &mut copy).expect("a copy");
        assert!(copy == *expected, "copy {place:?}");
    }
}

/// What the superblock of the genuine volume pins, for whoever has its keys.
fn genuine_pin(keys: &KeySchedule, pin: HeaderPin) -> hostveil::error::Result<HeaderPin> {
    // Whoever opened another header has other keys, which vouch for no superblock of this volume.
    let code = keys.superblock_mac()?.sign(&[b"superblock"])?;
    match GENUINE.keys.superblock_mac()?.verify(&[b"superblock"], &code)? {
        true => Ok(pin),
        false => Err(Error::new(ErrorKind::CorruptHeader, "no superblock")),
    }
}

/// Reads, describes and unlocks two copies, with the key and with the passphrase.
fn examine(a: &Copy, b: &Copy, pin: HeaderPin) -> (Option<Unlocked>, MemoryBacking) {
    let store = MemoryBacking::new(ByteCount(1 << 20));
    for (place, copy) in CopyPlace::BOTH.into_iter().zip([a, b]) {
        store.write_at(place.offset(), copy).expect("a store");
    }
    let checked = match RawHeader::read(&store).check(&LIMITS) {
        Ok(checked) => checked,
        Err(e) => {
            let kinds = [ErrorKind::WrongDevice, ErrorKind::CorruptHeader, ErrorKind::Unsupported];
            assert!(kinds.contains(&e.kind()), "{e}");
            return (None, store);
        }
    };
    assert!(checked.describe().keyslots.len() <= sealed::SLOTS);
    let superblock = |keys: &KeySchedule| Ok((genuine_pin(keys, pin)?, ()));
    let by_key = checked.unlock(SlotSecret::Key(&GENUINE.key), None, superblock);
    let by_passphrase = checked.unlock(SlotSecret::Passphrase(&GENUINE.passphrase), None, superblock);
    let opened = by_key.or(by_passphrase).ok().map(|(unlocked, ())| unlocked);
    (opened, store)
}

/// Puts a code of the key's onto a copy.
fn sign(copy: &mut Copy) {
    let key = GENUINE.keys.header_mac().expect("a key");
    let code = key.sign(&[&copy[..MAC]]).expect("a code");
    copy[MAC..].copy_from_slice(&code);
}

fn digest(copy: &Copy) -> [u8; 32] {
    let mut digest = [0; 32];
    hostveil::crypto::Hash::Sha256.digest_into(&[copy], &mut digest);
    digest
}
