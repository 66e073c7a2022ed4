//! Recovery keys as people type them. Checked is that what is recognised is in the one canonical
//! spelling, that nothing but a key with a right checksum is recognised, and that no error shows what was
//! typed.
//!
//! Input: a byte of settings. If it is even, the rest is what was typed. If it is odd, 32 bytes of a key
//! follow, and then pairs of a position and a letter to be typed there instead.

use hostveil::env::Entropy;
use hostveil::error::{Error, ErrorKind, Result};
use hostveil::keys::{RecoveryKey, Typed, canonicalise};

use super::input::Input;

const MODHEX: &[u8] = b"cbdefghijklnrtuv";
/// Nine groups of eight letters, and eight dashes.
const CANONICAL_LEN: usize = 80;
const KEY_LEN: usize = 32;
/// A setting: the input is a key and the slips in typing it.
const MISTYPED: u8 = 1 << 0;

/// Runs the target.
pub fn recovery_key(data: &[u8]) {
    let mut input = Input::new(data);
    if input.byte() & MISTYPED == 0 {
        check(input.rest());
        return;
    }
    let key = RecoveryKey::generate(&Chosen(input.array())).expect("a chosen key");
    let text = key.text().expose();
    assert_eq!(check(text).as_deref(), Some(text), "a fresh key is not recognised");
    let typed = mistype(text, input.rest());
    if let Some(recognised) = check(&typed) {
        // Another key's checksum fits by one chance in four thousand million.
        assert_eq!(recognised, text, "a mistyped key is taken for another");
    }
}

/// Randomness that is not.
struct Chosen([u8; KEY_LEN]);

impl Entropy for Chosen {
    fn fill(&self, into: &mut [u8]) -> Result<()> {
        into.iter_mut().zip(self.0).for_each(|(to, from)| *to = from);
        Ok(())
    }
}

fn mistype(text: &[u8], slips: &[u8]) -> Vec<u8> {
    let mut typed = text.to_vec();
    for slip in slips.chunks_exact(2) {
        let at = usize::from(slip[0]) % typed.len();
        typed[at] = slip[1];
    }
    typed
}

/// Has `typed` recognised, checks the answer, and returns the key's text, if it is one.
fn check(typed: &[u8]) -> Option<Vec<u8>> {
    match canonicalise(typed) {
        Ok(Typed::Canonical(text)) => {
            let text = text.expose().to_vec();
            check_canonical(typed, &text);
            Some(text)
        }
        Ok(Typed::NotARecoveryKey) => {
            assert!(letters(typed) != 72 || !is_modhex(typed), "72 letters of modhex passed as a passphrase");
            None
        }
        Err(error) => {
            check_error(typed, &error);
            None
        }
    }
}

fn check_canonical(typed: &[u8], text: &[u8]) {
    assert_eq!(text.len(), CANONICAL_LEN);
    for (at, letter) in text.iter().enumerate() {
        assert!(if at % 9 == 8 { *letter == b'-' } else { MODHEX.contains(letter) });
    }
    let significant = |text: &[u8]| {
        let letters = text.iter().filter(|letter| !is_separator(**letter));
        letters.map(u8::to_ascii_lowercase).collect::<Vec<_>>()
    };
    assert_eq!(significant(text), significant(typed), "other letters than were typed");
    let again = canonicalise(&text.to_ascii_uppercase()).expect("a canonical key");
    assert!(matches!(again, Typed::Canonical(again) if again.equals(text)));
}

/// An error is about a wrong key, and no group of letters that could be a key's stands in it.
fn check_error(typed: &[u8], error: &Error) {
    assert_eq!(error.kind(), ErrorKind::WrongKey);
    let shown = format!("{error} {error:?}").to_lowercase();
    let groups = typed.split(|letter| is_separator(*letter)).filter(|group| group.len() >= 8);
    for group in groups.filter(|group| is_modhex(group)) {
        let group = String::from_utf8_lossy(group).to_lowercase();
        assert!(!shown.contains(&group), "the error shows what was typed");
    }
}

fn is_separator(letter: u8) -> bool {
    letter == b'-' || letter.is_ascii_whitespace()
}

fn is_modhex(typed: &[u8]) -> bool {
    typed.iter().all(|letter| is_separator(*letter) || MODHEX.contains(&letter.to_ascii_lowercase()))
}

fn letters(typed: &[u8]) -> usize {
    typed.iter().filter(|letter| !is_separator(**letter)).count()
}
