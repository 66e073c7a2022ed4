//! AES-XTS over runs of sectors: the [`Xts`] trait, and the choice of who carries it out.
//!
//! Guaranteed: an error leaves no doubt, because every call returns a `Result` and a caller that
//! gets an error must not use the bytes, part of which may be transformed. Keys whose halves are
//! equal are refused (they would turn XTS into something weaker). Not guaranteed: integrity; XTS has
//! none. Any change of a ciphertext block changes the whole plaintext block and nothing else.
//!
//! Key schedules live inside the cipher libraries: both zero them when they are dropped, and we lock
//! them into memory where they lie. The registers and stack that a call leaves behind are not cleaned.

use subtle::ConstantTimeEq;

use crate::error::{Error, ErrorKind, Result};
use crate::units::{BlockSize, ByteCount};

/// Bytes per step of the tweak, whatever the sector size: dm-crypt's `plain64` counts 512-byte
/// sectors unless told otherwise, and LUKS2 (specification, 3.3: `iv_tweak`) never tells it.
pub const TWEAK_UNIT: u64 = 512;

/// AES-XTS with one key (IEEE 1619) and the tweak `plain64`: the number of the 512-byte unit in
/// which a sector begins, as a 64-bit little-endian integer, padded with zeroes.
pub trait Xts: Send + Sync {
    /// Encrypts a run of whole sectors in place. `first_tweak` is the first sector's tweak in units of
    /// 512 bytes; it grows by `sector_size / 512` from sector to sector.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a part of a sector, sectors smaller than 512 bytes or a tweak
    /// that does not fit. After any error the content of `sectors` is undefined and must not be used.
    fn encrypt(&self, sectors: &mut [u8], sector_size: BlockSize, first_tweak: u64) -> Result<()>;

    /// The reverse of [`Self::encrypt`], with the same errors.
    fn decrypt(&self, sectors: &mut [u8], sector_size: BlockSize, first_tweak: u64) -> Result<()>;

    /// Who carries it out, for logs and benchmarks.
    fn name(&self) -> &'static str;
}

/// Who carries out AES-XTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The fastest that this build has for the key.
    Fastest,
    /// The portable reference.
    Reference,
}

/// AES-XTS with `key`: 64 bytes for AES-256, 32 for AES-128, the data key first, the tweak key second
/// (IEEE 1619-2018, 5.1).
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for any other length and for a key whose halves are equal.
pub fn xts(key: &[u8], backend: Backend) -> Result<Box<dyn Xts>> {
    let (data_key, tweak_key) = key.split_at(key.len() / 2);
    if data_key.ct_eq(tweak_key).into() {
        return Err(Error::new(ErrorKind::InvalidInput, "the two halves of an AES-XTS key are equal"));
    }
    match (key.len(), backend) {
        #[cfg(feature = "aws-lc")]
        (64, Backend::Fastest) => super::xts_aws_lc::aes_256(key),
        (64, _) => super::xts_reference::aes_256(data_key, tweak_key),
        (32, _) => super::xts_reference::aes_128(data_key, tweak_key),
        (len, _) => {
            Err(Error::new(ErrorKind::InvalidInput, format!("an AES-XTS key cannot have {len} bytes")))
        }
    }
}

/// Cuts a run into its sectors, each with its initial tweak.
pub(super) fn sectors(
    run: &mut [u8],
    sector_size: BlockSize,
    first_tweak: u64,
) -> Result<impl Iterator<Item = ([u8; 16], &mut [u8])>> {
    let (len, size) = (ByteCount::of(run).0, u64::from(sector_size.bytes()));
    if size < TWEAK_UNIT || len % size != 0 {
        let what = format!("{len} bytes are not a run of sectors of {size} bytes");
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    if first_tweak.checked_add(len / TWEAK_UNIT).is_none() {
        let what = format!("{len} bytes from sector {first_tweak} on have no 64-bit sector numbers");
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    // Counted in 128 bits: the range looks one step beyond the last sector.
    let tweaks = (u128::from(first_tweak)..).step_by(sector_size.len() / 512);
    Ok(tweaks.map(u128::to_le_bytes).zip(run.chunks_exact_mut(sector_size.len())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn unhex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> =
            text.chars().filter_map(|c| c.to_digit(16)).map(|d| u8::try_from(d).unwrap()).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    /// Every backend that can use the key.
    fn backends(key: &[u8]) -> Vec<Box<dyn Xts>> {
        [Backend::Reference, Backend::Fastest].map(|backend| xts(key, backend).unwrap()).into()
    }

    /// Checks that one sector becomes what the standard says, and back, with every backend.
    /// `start` and `end` are its ciphertext's first and last bytes.
    fn check(key: &str, unit: u64, plain: &[u8], start: &str, end: &str) {
        let (key, start, end) = (unhex(key), unhex(start), unhex(end));
        for xts in backends(&key) {
            let mut sector = plain.to_vec();
            xts.encrypt(&mut sector, BlockSize::B512, unit).unwrap();
            assert!(sector.starts_with(&start) && sector.ends_with(&end), "{} at {unit:#x}", xts.name());
            xts.decrypt(&mut sector, BlockSize::B512, unit).unwrap();
            assert_eq!(sector, plain);
        }
    }

    /// The standard's vectors of 32 bytes, as the start of a sector: without ciphertext stealing a
    /// block of XTS does not depend on those after it.
    fn check_start(key: &str, unit: u64, plain: u8, start: &str) {
        check(key, unit, &[plain; 512], start, "");
    }

    /// IEEE 1619-2018, annex B, vectors 2 to 5 and 10 to 14. (Vector 1's key has equal halves.)
    #[test]
    fn the_standards_vectors() {
        let twos = "22222222222222222222222222222222";
        check_start(
            &format!("11111111111111111111111111111111 {twos}"),
            0x33_3333_3333,
            0x44,
            "c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0",
        );
        check_start(
            &format!("fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0 {twos}"),
            0x33_3333_3333,
            0x44,
            "af85336b597afc1a900b2eb21ec949d292df4c047e0b21532186a5971a227a89",
        );
        let counting: Vec<u8> = (0..=255).chain(0..=255).collect();
        let digits = "27182818284590452353602874713526 31415926535897932384626433832795";
        let (start, end) = (
            "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c",
            "eb4a427d1923ce3ff262735779a418f20a282df920147beabe421ee5319d0568",
        );
        check(digits, 0, &counting, start, end);
        let mut vector_5 = counting.clone();
        xts(&unhex(digits), Backend::Reference).unwrap().encrypt(&mut vector_5, BlockSize::B512, 0).unwrap();
        let (start, end) = (
            "264d3ca8512194fec312c8c9891f279fefdd608d0c027b60483a3fa811d65ee5",
            "6ad12c39f1e867a4b7b1d7818a4b753dfd2a89ccb45e001a03a867b187f225dd",
        );
        check(digits, 1, &vector_5, start, end);
        for (unit, start, end) in AES_256 {
            check(LONG_DIGITS, unit, &counting, start, end);
        }
    }

    const LONG_DIGITS: &str = "2718281828459045235360287471352662497757247093699959574966967627 \
                               3141592653589793238462643383279502884197169399375105820974944592";

    const AES_256: [(u64, &str, &str); 5] = [
        (
            0xff,
            "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b",
            "773dad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151",
        ),
        (
            0xffff,
            "77a31251618a15e6b92d1d66dffe7b50b50bad552305ba0217a610688eff7e11",
            "54fbff89eeaeea791f4a7ab1f9868294a4f9e27b42af8100cb9d59cef9645803",
        ),
        (
            0xff_ffff,
            "e387aaa58ba483afa7e8eb469778317ecf4cf573aa9d4eac23f2cdf914e4e200",
            "ed242c8900dd1fa965bc950dfce09b132263a1eef52dd6888c309f5a7d712826",
        ),
        (
            0xffff_ffff,
            "bf53d2dade78e822a4d949a9bc6766b01b06a8ef70d26748c6a7fc36d80ae4c5",
            "f6516139420fcff3b7361d86322c4bd84c82f335abb152c4a93411373aaa8220",
        ),
        (
            0xff_ffff_ffff,
            "64497e5a831e4a932c09be3e5393376daa599548b816031d224bbf50a818ed23",
            "6975be5e0b4efce51cd3e70c25a1fbbbd609d273ad5b0d59631c531f6a0a57b9",
        ),
    ];

    #[test]
    fn unusable_keys_are_refused() {
        for key in [vec![7; 64], vec![7; 32], vec![], vec![1, 2], (0..48).collect(), (0..65).collect()] {
            for backend in [Backend::Fastest, Backend::Reference] {
                assert_eq!(xts(&key, backend).err().map(|e| e.kind()), Some(ErrorKind::InvalidInput));
            }
        }
    }

    #[test]
    fn parts_of_sectors_and_tweaks_beyond_the_end_are_refused() {
        for xts in backends(&(0..64).collect::<Vec<u8>>()) {
            assert!(xts.encrypt(&mut [0; 511], BlockSize::B512, 0).is_err());
            assert!(xts.decrypt(&mut [0; 512], BlockSize::B4096, 0).is_err());
            assert!(xts.decrypt(&mut [0; 16], BlockSize::BYTE, 0).is_err());
            assert!(xts.encrypt(&mut [0; 1024], BlockSize::B512, u64::MAX - 1).is_err());
            assert!(xts.encrypt(&mut [0; 1024], BlockSize::B512, u64::MAX - 2).is_ok());
            assert!(xts.encrypt(&mut [], BlockSize::B512, 5).is_ok());
        }
    }

    /// The tweak counts 512-byte units at every sector size: a run of sectors is the same as each
    /// sector for itself at its place.
    #[test]
    fn a_run_is_its_sectors() {
        for xts in backends(&(0..64).collect::<Vec<u8>>()) {
            let mut run = vec![0x5a; 3 * 4096];
            xts.encrypt(&mut run, BlockSize::B4096, 1000).unwrap();
            for (number, sector) in run.chunks_mut(4096).enumerate() {
                xts.decrypt(sector, BlockSize::B4096, 1000 + 8 * number as u64).unwrap();
                assert!(sector.iter().all(|b| *b == 0x5a));
            }
        }
    }

    /// Threads that use one cipher at the same time do not disturb each other.
    #[test]
    fn one_cipher_serves_many_threads() {
        let key: Vec<u8> = (0..64).collect();
        let (fast, reference) =
            (xts(&key, Backend::Fastest).unwrap(), xts(&key, Backend::Reference).unwrap());
        std::thread::scope(|scope| {
            for thread in 0..8_u64 {
                let (fast, reference) = (&fast, &reference);
                scope.spawn(move || {
                    for round in 0..50 {
                        let tweak = thread * 1_000_000 + round * 17;
                        let mut data = vec![u8::try_from(thread).unwrap(); 8192];
                        fast.encrypt(&mut data, BlockSize::B512, tweak).unwrap();
                        reference.decrypt(&mut data, BlockSize::B512, tweak).unwrap();
                        assert!(data.iter().all(|b| u64::from(*b) == thread));
                    }
                });
            }
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn backends_agree(
            key in prop::collection::vec(any::<u8>(), 64),
            size in prop::sample::select(vec![512_u32, 1024, 2048, 4096]),
            count in 0_usize..9,
            tweak in prop_oneof![any::<u32>().prop_map(u64::from), 0..u64::MAX - 100],
            seed in any::<u8>(),
        ) {
            let (fast, reference) = (xts(&key, Backend::Fastest).unwrap(), xts(&key, Backend::Reference).unwrap());
            let size = BlockSize::new(size).unwrap();
            let plain: Vec<u8> = (0..251).cycle().map(|b: u8| b ^ seed).take(count * size.len()).collect();
            let mut one = plain.clone();
            let mut two = plain.clone();
            fast.encrypt(&mut one, size, tweak).unwrap();
            reference.encrypt(&mut two, size, tweak).unwrap();
            prop_assert_eq!(&one, &two);
            fast.decrypt(&mut one, size, tweak).unwrap();
            reference.decrypt(&mut two, size, tweak).unwrap();
            prop_assert_eq!(&one, &plain);
            prop_assert_eq!(&two, &plain);
        }
    }
}
