//! The recovery key: 256 random bits in letters that can be written down and typed on any keyboard,
//! with a checksum that finds typing errors before a key slot is tried.
//!
//! Its text follows the recovery keys of systemd-cryptenroll: the 16 letters of modhex, which lie in
//! the same place on most keyboard layouts, in groups of eight with dashes between them. Eight groups
//! are the key; a ninth, which systemd's keys do not have, is the checksum. The text itself, lower
//! case and with its dashes, is the passphrase of a key slot, so that cryptsetup takes it as typed.

use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use crate::env::Entropy;
use crate::error::{Error, ErrorKind, Result};
use crate::secret::SecretBytes;

/// Modhex: the letter at position `n` is the hexadecimal digit `n`.
const ALPHABET: &[u8; 16] = b"cbdefghijklnrtuv";
/// Sets the checksum apart from every other use of SHA-256.
const DOMAIN: &[u8] = b"hostveil recovery key v1";
const KEY: usize = 32;
/// The first bytes of SHA-256 over the domain and the key.
const CHECKSUM: usize = 4;
const DIGITS: usize = 2 * (KEY + CHECKSUM);
/// Digits per group.
const GROUP: usize = 8;
const GROUPS: usize = DIGITS / GROUP;
const TEXT: usize = DIGITS + GROUPS - 1;

/// A fresh recovery key.
#[derive(Debug)]
pub struct RecoveryKey {
    text: SecretBytes,
}

/// What something typed turned out to be.
#[derive(Debug)]
pub enum Typed {
    /// Some other passphrase, to be used exactly as it was typed.
    NotARecoveryKey,
    /// A recovery key whose checksum fits, in the one spelling that key slots know.
    Canonical(SecretBytes),
}

impl RecoveryKey {
    /// Makes a key from 32 random bytes.
    ///
    /// # Errors
    /// The random source's, and [`ErrorKind::OutOfMemory`].
    pub fn generate(entropy: &dyn Entropy) -> Result<Self> {
        let key = SecretBytes::random(KEY, entropy)?;
        let checksum = checksum_of(key.expose());
        let mut digits = SecretBytes::zeroed(DIGITS)?;
        let bytes = key.expose().iter().chain(checksum.iter());
        for (pair, byte) in digits.expose_mut().chunks_exact_mut(2).zip(bytes) {
            pair.copy_from_slice(&[byte >> 4, byte & 15]);
        }
        Ok(Self { text: spell(digits.expose())? })
    }

    /// The canonical text: 80 lower-case letters and dashes. It is the passphrase of the key slot.
    pub fn text(&self) -> &SecretBytes {
        &self.text
    }
}

/// Recognises a recovery key in what a user typed, however it is spaced and capitalised.
///
/// # Errors
/// [`ErrorKind::WrongKey`] when it is meant to be a recovery key but has a typing error; the error
/// names the groups that seem wrong, counted from 1, and never a letter. No other passphrase can
/// therefore consist of exactly 72 of these letters.
pub fn canonicalise(typed: &[u8]) -> Result<Typed> {
    let mut digits = SecretBytes::zeroed(DIGITS)?;
    if !read_digits(typed, digits.expose_mut()) {
        return match malformed_groups(typed) {
            Some(groups) => {
                Err(mistyped("not every group is eight of the letters that such keys have", &groups))
            }
            None => Ok(Typed::NotARecoveryKey),
        };
    }
    if checksum_fits(digits.expose()) {
        return spell(digits.expose()).map(Typed::Canonical);
    }
    Err(mistyped("its checksum does not fit", &suspected_groups(digits.expose_mut())))
}

/// Reads the letters in `typed` into `digits`; whether they are modhex and exactly as many.
fn read_digits(typed: &[u8], digits: &mut [u8]) -> bool {
    let mut letters = typed.iter().filter(|byte| !is_separator(**byte));
    for digit in digits {
        match letters.next().and_then(|letter| value_of(*letter)) {
            Some(value) => *digit = value,
            None => return false,
        }
    }
    letters.next().is_none()
}

fn is_separator(byte: u8) -> bool {
    byte == b'-' || byte.is_ascii_whitespace()
}

fn value_of(letter: u8) -> Option<u8> {
    let position = ALPHABET.iter().position(|known| *known == letter.to_ascii_lowercase())?;
    u8::try_from(position).ok()
}

/// The canonical text of a key's digits.
fn spell(digits: &[u8]) -> Result<SecretBytes> {
    let mut text = SecretBytes::zeroed(TEXT)?;
    let letters = text.expose_mut();
    letters.fill(b'-');
    for (position, digit) in digits.iter().enumerate() {
        letters[position + position / GROUP] = ALPHABET[usize::from(digit & 15)];
    }
    Ok(text)
}

fn checksum_of(key: &[u8]) -> Zeroizing<[u8; CHECKSUM]> {
    let mut digest = Sha256::new_with_prefix(DOMAIN).chain_update(key).finalize();
    let mut checksum = Zeroizing::new([0; CHECKSUM]);
    checksum.copy_from_slice(&digest[..CHECKSUM]);
    digest.as_mut_slice().zeroize();
    checksum
}

fn checksum_fits(digits: &[u8]) -> bool {
    let mut bytes = Zeroizing::new([0; KEY + CHECKSUM]);
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    let (key, checksum) = bytes.split_at(KEY);
    checksum_of(key).as_slice() == checksum
}

/// The groups, counted from 0, in which one wrong letter, or two neighbours that changed places,
/// explain why the checksum does not fit; none if neither does. Leaves `digits` changed.
fn suspected_groups(digits: &mut [u8]) -> Vec<usize> {
    for position in 0..DIGITS {
        let typed = digits[position];
        for meant in (0..16).filter(|meant| *meant != typed) {
            digits[position] = meant;
            if checksum_fits(digits) {
                return vec![position / GROUP];
            }
        }
        digits[position] = typed;
    }
    for position in 1..DIGITS {
        digits.swap(position - 1, position);
        if checksum_fits(digits) {
            let mut groups = vec![(position - 1) / GROUP, position / GROUP];
            groups.dedup();
            return groups;
        }
        digits.swap(position - 1, position);
    }
    Vec::new()
}

/// The groups, counted from 0, that spoil what otherwise has a recovery key's shape: nine groups,
/// most of them eight letters of modhex.
fn malformed_groups(typed: &[u8]) -> Option<Vec<usize>> {
    let groups = || typed.split(|byte| is_separator(*byte)).filter(|group| !group.is_empty());
    let well_formed =
        |group: &[u8]| group.len() == GROUP && group.iter().all(|letter| value_of(*letter).is_some());
    if groups().count() != GROUPS {
        return None;
    }
    let malformed: Vec<_> =
        groups().enumerate().filter(|(_, group)| !well_formed(group)).map(|(number, _)| number).collect();
    (malformed.len() <= GROUPS / 2).then_some(malformed)
}

fn mistyped(why: &str, groups: &[usize]) -> Error {
    let numbers: Vec<_> = groups.iter().map(|group| (group + 1).to_string()).collect();
    let suspicion = match numbers.as_slice() {
        [] => "more than one letter seems mistyped".to_owned(),
        [number] => format!("group {number} seems mistyped"),
        numbers => format!("groups {} seem mistyped", numbers.join(" and ")),
    };
    Error::new(ErrorKind::WrongKey, format!("this looks like a recovery key, but {why}; {suspicion}"))
        .hint("type it again: nine groups of eight letters; spaces, dashes and capitals do not matter")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::OsEntropy;

    /// The key `00 01 .. 1f`; its text was computed with another program's SHA-256.
    const KNOWN: &str = "cccbcdce-cfcgchci-cjckclcn-crctcucv-bcbbbdbe-bfbgbhbi-bjbkblbn-brbtbubv-dubjbrif";

    struct Counting;

    impl Entropy for Counting {
        fn fill(&self, into: &mut [u8]) -> Result<()> {
            into.iter_mut().zip(0..).for_each(|(byte, number)| *byte = number);
            Ok(())
        }
    }

    fn canonical(typed: &str) -> Option<String> {
        match canonicalise(typed.as_bytes()).unwrap() {
            Typed::Canonical(text) => Some(String::from_utf8(text.expose().to_vec()).unwrap()),
            Typed::NotARecoveryKey => None,
        }
    }

    /// The error's sentence, after checks that hold for every such error.
    fn complaint(typed: &str) -> String {
        let error = canonicalise(typed.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongKey);
        let shown = format!("{error:?}");
        for group in typed.split('-') {
            assert!(!shown.contains(group), "{shown} shows {group}");
        }
        error.to_string()
    }

    fn with_letter(position: usize, letter: char) -> String {
        KNOWN.chars().enumerate().map(|(at, old)| if at == position { letter } else { old }).collect()
    }

    #[test]
    fn a_known_key_has_its_known_text() {
        let key = RecoveryKey::generate(&Counting).unwrap();
        assert_eq!(key.text().expose(), KNOWN.as_bytes());
        assert!(!format!("{key:?}").contains("cccb"));
    }

    #[test]
    fn fresh_keys_differ_and_are_recognised() {
        let keys: Vec<_> = (0..20).map(|_| RecoveryKey::generate(&OsEntropy).unwrap()).collect();
        for (number, key) in keys.iter().enumerate() {
            let Typed::Canonical(text) = canonicalise(key.text().expose()).unwrap() else {
                panic!("not recognised")
            };
            assert!(text.equals(key.text().expose()));
            assert!(keys[..number].iter().all(|other| !other.text().equals(key.text().expose())));
        }
    }

    #[test]
    fn spacing_and_capitals_do_not_matter() {
        let spaced = KNOWN.replace('-', "  ");
        for typed in [
            KNOWN.to_owned(),
            KNOWN.to_uppercase(),
            KNOWN.replace('-', ""),
            spaced,
            format!(" {KNOWN}\n"),
            KNOWN.replacen('-', " - ", 3),
        ] {
            assert_eq!(canonical(&typed).as_deref(), Some(KNOWN), "{typed:?}");
        }
    }

    #[test]
    fn other_passphrases_pass_untouched() {
        let systemd = &KNOWN[..71];
        assert_eq!(systemd.split('-').count(), 8);
        for typed in [
            "",
            "-",
            "correct horse battery staple",
            "one-two-three-four-five-six-seven-eight-nine",
            systemd,
            &systemd.replace('-', ""),
            &format!("{KNOWN}-cccccccc"),
            &format!("{KNOWN}x").replace('-', ""),
            "pässwörter-sind-auch-nur-wörter",
        ] {
            assert_eq!(canonical(typed), None, "{typed:?}");
        }
        assert!(matches!(canonicalise(&[0xff; 72]), Ok(Typed::NotARecoveryKey)));
    }

    #[test]
    fn every_wrong_letter_is_located() {
        for (position, old) in KNOWN.char_indices().filter(|(_, letter)| *letter != '-') {
            let wrong = if old == 'v' { 'c' } else { 'v' };
            let complaint = complaint(&with_letter(position, wrong));
            let group = position / 9 + 1;
            assert!(
                complaint.ends_with(&format!("does not fit; group {group} seems mistyped")),
                "{complaint}"
            );
        }
    }

    #[test]
    fn swapped_neighbours_are_located() {
        let mut swapped = KNOWN.as_bytes().to_vec();
        swapped.swap(11, 12);
        assert_ne!(swapped, KNOWN.as_bytes());
        let message = complaint(std::str::from_utf8(&swapped).unwrap());
        assert!(message.ends_with("group 2 seems mistyped"), "{message}");
        // The last letter of group 1 and the first of group 2 lie on both sides of a dash.
        let mut across = KNOWN.as_bytes().to_vec();
        across.swap(7, 9);
        let message = complaint(std::str::from_utf8(&across).unwrap());
        assert!(message.ends_with("groups 1 and 2 seem mistyped"), "{message}");
    }

    #[test]
    fn two_errors_are_noticed_but_not_located() {
        let twice = with_letter(0, 'v').replace("cfcgchci", "cfcgchcv");
        assert!(complaint(&twice).ends_with("more than one letter seems mistyped"));
    }

    #[test]
    fn malformed_groups_are_named() {
        for (typed, expected) in [
            (KNOWN.replace("cfcgchci", "cfcgchc"), "; group 2 seems mistyped"),
            (KNOWN.replace("cfcgchci", "cfcgchcii"), "; group 2 seems mistyped"),
            (KNOWN.replace("dubjbrif", "dubjbri1"), "; group 9 seems mistyped"),
            (KNOWN.replace("cfcgchci", "cfcgéhci"), "; group 2 seems mistyped"),
            (KNOWN.replace("crct", "crat").replace("bjbk", "bmbk"), "; groups 4 and 7 seem mistyped"),
        ] {
            let complaint = complaint(&typed);
            assert!(complaint.ends_with(expected), "{complaint}");
        }
    }
}
