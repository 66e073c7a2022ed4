//! Authenticated encryption with associated data: the [`Suite`]s, and [`AeadKey`], a key that seals
//! and opens bytes in place.
//!
//! Guaranteed: [`AeadKey::open`] gives out plaintext only if the tag fits key, nonce, associated data
//! and ciphertext; otherwise the buffer is zeroes. A key has neither `Clone` nor `Debug`. Each suite has
//! a fast backend and a portable reference, tested against each other.
//!
//! Not guaranteed: that a nonce is used once, which is the caller's duty and a matter of life and death
//! for AES-GCM and AEGIS (`sealed/` sees to it by type); and that a key commits to one message: a
//! ciphertext can be made that opens under two keys, so whoever tries several keys needs a commitment
//! beside it.
//!
//! Where keys lie: the portable backends in locked memory that is zeroed on drop; AEGIS's in pages of
//! its own (`secret.rs`), beside no key schedule, since it has none. AWS-LC keeps its key schedule in
//! memory that it zeroes when it frees it, and that cannot be locked, for its address is not told. `ring`'s key
//! schedule is overwritten here, and not locked. Stack
//! and registers that a call leaves behind are not cleaned.

mod aegis_reference;
#[cfg(feature = "aws-lc")]
mod aws_lc;
mod libaegis;
mod portable;
#[cfg(feature = "aws-lc")]
mod ring;

use std::fmt;
use std::str::FromStr;

use zeroize::Zeroize;

use crate::error::{Error, ErrorKind, Result};

use super::Backend;

/// Bytes of a key, for every suite.
pub const KEY_LEN: usize = 32;
/// Bytes of a nonce, for every suite.
pub const NONCE_LEN: usize = 12;
/// Bytes of a tag, for every suite.
pub const TAG_LEN: usize = 16;

/// An authenticated cipher. The numbers are those of the sealed format's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Suite {
    /// AES-256-GCM (NIST SP 800-38D). A nonce that is used twice gives away the key for forging.
    Aes256Gcm = 1,
    /// AES-256-GCM-SIV (RFC 8452). A nonce that is used twice shows only whether the messages were equal.
    Aes256GcmSiv = 2,
    /// AEGIS-256X4 (RFC 10032) with 128-bit tags; its 32-byte nonce is the 12 bytes and
    /// 20 zeroes. Several times as fast as AES-GCM with wide AES instructions; not approved by NIST.
    Aegis256x4 = 3,
}

impl Suite {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Aes256Gcm, Self::Aes256GcmSiv, Self::Aegis256x4];

    /// Its number in headers.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// The suite of that number in headers.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.number() == number)
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "aes-256-gcm",
            Self::Aes256GcmSiv => "aes-256-gcm-siv",
            Self::Aegis256x4 => "aegis-256x4",
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Suite {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|suite| suite.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("'{text}' is no cipher suite; there are {names}")
        })
    }
}

/// One key with one implementation of its suite.
trait Aead: Send + Sync {
    /// As [`AeadKey::seal`].
    fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], data: &mut [u8]) -> Result<[u8; TAG_LEN]>;

    /// Opens in place, or says that the tag does not fit; what `data` holds then is undefined.
    fn open(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], data: &mut [u8], tag: &[u8; TAG_LEN]) -> Opened;

    /// Suite and implementation.
    fn name(&self) -> &'static str;
}

/// What came of an attempt to open.
type Opened = Result<(), Forged>;

/// The tag does not fit.
struct Forged;

/// A key of a suite.
pub struct AeadKey {
    cipher: Box<dyn Aead>,
}

impl AeadKey {
    /// A key for the fastest implementation in this build. The caller zeroes its copy of `key`.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`] when there is none to keep the key in.
    pub fn new(suite: Suite, key: &[u8; KEY_LEN]) -> Result<Self> {
        Self::with_backend(suite, key, Backend::Fastest)
    }

    /// A key for the implementation asked for; without the feature `aws-lc` the fastest AES is the
    /// reference.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_backend(suite: Suite, key: &[u8; KEY_LEN], backend: Backend) -> Result<Self> {
        let cipher = match (suite, backend) {
            #[cfg(feature = "aws-lc")]
            (Suite::Aes256Gcm, Backend::Fastest) if ring::is_faster_here() => ring::gcm(key)?,
            #[cfg(feature = "aws-lc")]
            (Suite::Aes256Gcm, Backend::Fastest) => aws_lc::gcm(key)?,
            #[cfg(feature = "aws-lc")]
            (Suite::Aes256GcmSiv, Backend::Fastest) => aws_lc::gcm_siv(key)?,
            (Suite::Aes256Gcm, _) => portable::gcm(key),
            (Suite::Aes256GcmSiv, _) => portable::gcm_siv(key),
            (Suite::Aegis256x4, Backend::Fastest) => libaegis::aegis_256x4(key)?,
            (Suite::Aegis256x4, Backend::Reference) => aegis_reference::aegis_256x4(key)?,
        };
        Ok(Self { cipher })
    }

    /// Encrypts `data` in place and gives the tag over it and `aad`. `nonce` must never have been used
    /// with this key before.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for more data than the suite takes (64 GiB); the data is then
    /// undefined and must not be used.
    pub fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], data: &mut [u8]) -> Result<[u8; TAG_LEN]> {
        self.cipher.seal(nonce, aad, data)
    }

    /// Decrypts `data` in place if `tag` fits.
    ///
    /// # Errors
    /// [`ErrorKind::TamperedBlock`] if it does not; `data` is then zeroes.
    pub fn open(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        data: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<()> {
        self.cipher.open(nonce, aad, data, tag).map_err(|Forged| {
            data.zeroize();
            Error::new(ErrorKind::TamperedBlock, "the authentication tag does not fit")
        })
    }

    /// Who carries it out, for logs and benchmarks.
    pub fn name(&self) -> &'static str {
        self.cipher.name()
    }
}

/// The error of every implementation that refuses to seal.
fn cannot_seal(len: usize) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("{len} bytes cannot be sealed in one piece"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) fn unhex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> =
            text.chars().filter_map(|c| c.to_digit(16)).map(|d| u8::try_from(d).unwrap()).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    fn array<const N: usize>(text: &str) -> [u8; N] {
        unhex(text).try_into().unwrap()
    }

    /// The reference, and every implementation that is fastest somewhere.
    fn all(suite: Suite, key: &[u8; 32]) -> Vec<AeadKey> {
        let key_of = |backend| AeadKey::with_backend(suite, key, backend).unwrap();
        let usual = [key_of(Backend::Reference), key_of(Backend::Fastest)];
        #[cfg(feature = "aws-lc")]
        let others = (suite == Suite::Aes256Gcm).then(|| [aws_lc::gcm(key), ring::gcm(key)]);
        #[cfg(not(feature = "aws-lc"))]
        let others = None::<[Result<Box<dyn Aead>>; 0]>;
        let others = others.into_iter().flatten().map(|cipher| AeadKey { cipher: cipher.unwrap() });
        usual.into_iter().chain(others).collect()
    }

    /// Key, nonce, associated data, plaintext, ciphertext, tag.
    type Vector<'a> = [&'a str; 6];

    /// All implementations seal and open a vector, and refuse it with any bit of the tag or one of
    /// each other part changed; what they refuse they zero.
    fn check(suite: Suite, [key, nonce, aad, plain, cipher, tag]: Vector<'_>) {
        let (nonce, aad, tag) = (array(nonce), unhex(aad), array(tag));
        for key in all(suite, &array(key)) {
            let mut data = unhex(plain);
            assert_eq!(key.seal(&nonce, &aad, &mut data).unwrap(), tag, "{}", key.name());
            assert_eq!(data, unhex(cipher), "{}", key.name());
            key.open(&nonce, &aad, &mut data, &tag).unwrap();
            assert_eq!(data, unhex(plain), "{}", key.name());
            refuses_forgeries(&key, (&nonce, &aad), &unhex(cipher), &tag);
        }
    }

    fn refuses_forgeries(
        key: &AeadKey,
        (nonce, aad): (&[u8; 12], &[u8]),
        cipher: &[u8],
        good_tag: &[u8; 16],
    ) {
        let refused = |nonce: &[u8; 12], aad: &[u8], cipher: &[u8], tag: &[u8; 16]| {
            let mut data = cipher.to_vec();
            let error = key.open(nonce, aad, &mut data, tag).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TamperedBlock);
            assert!(data.iter().all(|byte| *byte == 0), "{} left plaintext", key.name());
        };
        for bit in 0..128 {
            let mut tag = *good_tag;
            tag[bit / 8] ^= 1 << (bit % 8);
            refused(nonce, aad, cipher, &tag);
        }
        refused(nonce, aad, cipher, &[0; 16]);
        refused(nonce, aad, cipher, &[0xff; 16]);
        refused(nonce, aad, cipher, &good_tag.map(|byte| !byte));
        refused(nonce, aad, cipher, &good_tag.map(|byte| byte ^ 0x80));
        for bit in 0..96 {
            let mut nonce = *nonce;
            nonce[bit / 8] ^= 1 << (bit % 8);
            refused(&nonce, aad, cipher, good_tag);
        }
        for byte in 0..aad.len() {
            let mut aad = aad.to_vec();
            aad[byte] ^= 1;
            refused(nonce, &aad, cipher, good_tag);
        }
        for byte in 0..cipher.len() {
            let mut cipher = cipher.to_vec();
            cipher[byte] ^= 0x80;
            refused(nonce, aad, &cipher, good_tag);
        }
        refused(nonce, &[aad, &[0]].concat(), cipher, good_tag);
        refused(nonce, aad, &[cipher, &[0]].concat(), good_tag);
        if let Some((_, shorter)) = cipher.split_last() {
            refused(nonce, aad, shorter, good_tag);
        }
    }

    const ZERO_KEY: &str = "0000000000000000000000000000000000000000000000000000000000000000";
    const ZERO_NONCE: &str = "000000000000000000000000";

    /// "The Galois/Counter Mode of Operation" (McGrew, Viega), test cases 13 to 16: those of AES-256 that
    /// NIST's validation took over.
    #[test]
    fn gcm_is_the_standards() {
        let key = "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308";
        let nonce = "cafebabefacedbaddecaf888";
        let plain = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72\
                     1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255";
        let cipher = "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa\
                      8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad";
        let aad = "feedfacedeadbeeffeedfacedeadbeefabaddad2";
        for vector in [
            [ZERO_KEY, ZERO_NONCE, "", "", "", "530f8afbc74536b9a963b4f1c4cb738b"],
            [
                ZERO_KEY,
                ZERO_NONCE,
                "",
                "00000000000000000000000000000000",
                "cea7403d4d606b6e074ec5d3baf39d18",
                "d0d1c8a799996bf0265b98b5d48ab919",
            ],
            [key, nonce, "", plain, cipher, "b094dac5d93471bdec1a502270e3cc6c"],
            [key, nonce, aad, &plain[..120], &cipher[..120], "76fc6ece0f4e1768cddf8853bb2d551b"],
        ] {
            check(Suite::Aes256Gcm, vector);
        }
    }

    /// RFC 8452, C.2 (a choice of lengths) and C.3, where the counter wraps around.
    #[test]
    fn gcm_siv_is_the_standards() {
        let one = "0100000000000000000000000000000000000000000000000000000000000000";
        let three = "030000000000000000000000";
        for vector in [
            [one, three, "", "", "", "07f5f4169bbf55a8400cd47ea6fd400f"],
            [one, three, "", "0100000000000000", "c2ef328e5c71c83b", "843122130f7364b761e0b97427e3df28"],
            [
                one,
                three,
                "",
                "0100000000000000000000000000000002000000000000000000000000000000",
                "4a6a9db4c8c6549201b9edb53006cba821ec9cf850948a7c86c68ac7539d027f",
                "e819e63abcd020b006a976397632eb5d",
            ],
            [one, three, "01", "0200000000000000", "1de22967237a8132", "91213f267e3b452f02d01ae33e4ec854"],
            [
                "3c535de192eaed3822a2fbbe2ca9dfc88255e14a661b8aa82cc54236093bbc23",
                "688089e55540db1872504e1c",
                "734320ccc9d9bbbb19cb81b2af4ecbc3e72834321f7aa0f70b7282b4f33df23f167541",
                "ced532ce4159b035277d4dfbb7db62968b13cd4eec",
                "626660c26ea6612fb17ad91e8e767639edd6c9faee",
                "9d6c7029675b89eaf4ba1ded1a286594",
            ],
            [
                ZERO_KEY,
                ZERO_NONCE,
                "",
                "000000000000000000000000000000004db923dc793ee6497c76dcc03a98e108",
                "f3f80f2cf0cb2dd9c5984fcda908456cc537703b5ba70324a6793a7bf218d3ea",
                "ffffffff000000000000000000000000",
            ],
            [
                ZERO_KEY,
                ZERO_NONCE,
                "",
                "eb3640277c7ffd1303c7a542d02d3e4c0000000000000000",
                "18ce4f0b8cb4d0cac65fea8f79257b20888e53e72299e56d",
                "ffffffff000000000000000000000000",
            ],
        ] {
            check(Suite::Aes256GcmSiv, vector);
        }
    }

    /// With the nonce that the sealed format pads; the draft's own vectors, which use all 32 bytes of
    /// the nonce, stand in `aegis_reference.rs`.
    #[test]
    fn aegis_refuses_forgeries() {
        for key in all(Suite::Aegis256x4, &[7; 32]) {
            for len in [0, 1, 63, 64, 65, 200] {
                let mut data = vec![0x5a; len];
                let tag = key.seal(&[3; 12], b"where it lies", &mut data).unwrap();
                refuses_forgeries(&key, (&[3; 12], b"where it lies"), &data, &tag);
            }
        }
    }

    #[test]
    fn suites_have_names_and_numbers() {
        for suite in Suite::ALL {
            assert_eq!(Suite::from_number(suite.number()), Some(suite));
            assert_eq!(suite.to_string().parse(), Ok(suite));
        }
        assert_eq!(Suite::ALL.map(Suite::number), [1, 2, 3]);
        assert!([0, 4, u32::MAX].into_iter().all(|number| Suite::from_number(number).is_none()));
        assert!("null".parse::<Suite>().unwrap_err().contains("aegis-256x4"));
    }

    #[test]
    fn one_key_serves_many_threads() {
        for suite in Suite::ALL {
            let keys = all(suite, &[9; 32]);
            std::thread::scope(|scope| {
                for thread in 0..6_u8 {
                    let (reference, fast) = (&keys[0], &keys[1 + usize::from(thread) % (keys.len() - 1)]);
                    scope.spawn(move || {
                        for round in 0..20 {
                            let nonce = [thread, round, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                            let mut data = vec![thread; 4096];
                            let tag = fast.seal(&nonce, &[round; 32], &mut data).unwrap();
                            reference.open(&nonce, &[round; 32], &mut data, &tag).unwrap();
                            assert!(data.iter().all(|byte| *byte == thread));
                        }
                    });
                }
            });
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn backends_agree(
            key: [u8; 32],
            nonce: [u8; 12],
            aad in prop::collection::vec(any::<u8>(), 0..100),
            len in prop_oneof![0_usize..300, Just(4032), Just(4096), 4000_usize..9000],
            seed: u8,
        ) {
            let plain: Vec<u8> = (0..251).cycle().map(|byte: u8| byte ^ seed).take(len).collect();
            for suite in Suite::ALL {
                let keys = all(suite, &key);
                let mut sealed = plain.clone();
                let tag = keys[0].seal(&nonce, &aad, &mut sealed).unwrap();
                for key in &keys {
                    let mut data = plain.clone();
                    prop_assert_eq!(tag, key.seal(&nonce, &aad, &mut data).unwrap(), "{}", key.name());
                    prop_assert_eq!(&data, &sealed, "{}", key.name());
                    key.open(&nonce, &aad, &mut data, &tag).unwrap();
                    prop_assert_eq!(&data, &plain, "{}", key.name());
                }
            }
        }
    }
}
