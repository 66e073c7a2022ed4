//! LUKS1 headers as a hostile host writes them; no checksum stands in a fuzzer's way. Checked is what
//! holds for headers of every version, and that a header which passes the check has none of the
//! properties that the check is there to refuse, which are stated here a second time on the bare bytes.
//!
//! Input: what follows magic and version.

use hostveil::crypto::{CostLimits, Hash, KdfAlgorithm};

use super::input::Input;
use super::luks::{Acceptance, examine};

/// Sectors of the header (LUKS1 specification, 5: `LUKS_ALIGN_KEYSLOTS`, 4096 bytes).
const HEADER_SECTORS: u64 = 8;
const SLOTS: usize = 8;
const STRIPES: u32 = 4000;
const ACTIVE: u32 = 0x00ac_71f3;

/// Runs the target.
pub fn luks1_header(data: &[u8]) {
    let start = [b"LUKS\xba\xbe\x00\x01", data].concat();
    match examine(&start) {
        Acceptance::Unread => assert!(start.len() < 592, "a whole header is not read"),
        Acceptance::Read => {}
        Acceptance::Checked => check_harmless(data),
    }
}

/// What a header that was accepted must be, whatever else it says (LUKS1 specification, 3, figures 1
/// and 2).
fn check_harmless(behind_version: &[u8]) {
    let mut fields = Input::new(behind_version);
    let (cipher, mode, hash) = (fields.array::<32>(), fields.array::<32>(), fields.array::<32>());
    assert_eq!(text(&cipher), b"aes");
    assert!(matches!(text(&mode), b"xts-plain64" | b"xts-plain"));
    let hash = str::from_utf8(text(&hash)).ok().and_then(Hash::from_name).expect("a hash that we have");
    let (payload, key_bytes) = (u64::from(fields.u32()), fields.u32());
    assert!(matches!(key_bytes, 32 | 64));
    let _digest_and_salt = fields.take(20 + 32);
    check_cost(hash, fields.u32());
    let _uuid = fields.take(40);
    let sectors = u64::from(key_bytes) * u64::from(STRIPES) / 512;
    let mut areas = Vec::new();
    for _ in 0..SLOTS {
        let (active, iterations) = (fields.u32(), fields.u32());
        let _salt = fields.take(32);
        areas.push(u64::from(fields.u32()));
        assert_eq!(fields.u32(), STRIPES);
        if active == ACTIVE {
            check_cost(hash, iterations);
        }
    }
    check_areas(areas, sectors, payload);
}

/// The key material of all slots lies apart from the header, from each other's and from the data.
fn check_areas(mut areas: Vec<u64>, sectors: u64, payload: u64) {
    areas.sort_unstable();
    let mut free = HEADER_SECTORS;
    for start in areas {
        assert!(start >= free, "key material begins at sector {start}, before {free}");
        free = start + sectors;
    }
    assert!(free <= payload, "key material ends at sector {free}, behind {payload}");
}

fn check_cost(hash: Hash, iterations: u32) {
    let kdf = KdfAlgorithm::Pbkdf2 { hash, iterations };
    assert!(kdf.check_cost(&CostLimits::of_this_machine()).is_ok(), "{iterations} iterations");
}

/// A text field's bytes before its terminator.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}
