//! Where it begins to pay to split one request over a pool of threads.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use hostveil::error::{Error, ErrorKind, Result};
use hostveil::units::{BlockSize, ByteCount};
use rayon::ThreadPool;
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use crate::cipher::{Cipher, fold};
use crate::figure::{Better, Column, Figure};
use crate::interrupt;
use crate::timing::plural;

/// The requests' sizes.
const SIZES: [usize; 7] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20];

const WHOLE: Column = Column { name: "one thread", unit: "µs", better: Better::Lower };
const SPLIT: Column = Column { name: "split", unit: "µs", better: Better::Lower };
const GAIN: Column = Column { name: "gain", unit: "", better: Better::Higher };

/// Requests of several sizes, encrypted by one thread and by a pool.
pub(crate) struct Splitting {
    cipher: Box<dyn Cipher>,
    block: BlockSize,
    pool: ThreadPool,
    /// Microseconds per request for each size: whole and split, a pair each round.
    times: [Vec<[f64; 2]>; SIZES.len()],
}

impl Splitting {
    pub(crate) fn new(cipher: Box<dyn Cipher>, block: BlockSize, threads: NonZeroUsize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.get()).build();
        let pool =
            pool.map_err(|e| Error::new(ErrorKind::Io, "cannot start a pool of threads").because(e))?;
        Ok(Self { cipher, block, pool, times: std::array::from_fn(|_| Vec::new()) })
    }

    /// All sizes once, in about `time`; whether both ways came to the same ciphertext.
    pub(crate) fn round(&mut self, time: Duration) -> Result<bool> {
        let each = time / u32::try_from(2 * SIZES.len()).unwrap_or(1);
        let mut agree = true;
        for (number, size) in SIZES.into_iter().enumerate() {
            if size < self.block.len() {
                continue;
            }
            agree &= self.once(size)?;
            let whole = repeat(each, size, |data| self.whole(data))?;
            let split = repeat(each, size, |data| self.split(data))?;
            self.times[number].push([whole, split]);
        }
        Ok(agree)
    }

    /// Whether splitting makes no difference to what comes out.
    fn once(&self, size: usize) -> Result<bool> {
        let (mut one, mut other) = (vec![0x5a; size], vec![0x5a; size]);
        let tags = [self.whole(&mut one)?, self.split(&mut other)?];
        Ok(tags[0] == tags[1] && fold(&one) == fold(&other) && one == other)
    }

    fn whole(&self, data: &mut [u8]) -> Result<u64> {
        Ok(self.cipher.encrypt(0, data)?.unwrap_or(0))
    }

    /// In as many parts as there are threads, of whole blocks each.
    fn split(&self, data: &mut [u8]) -> Result<u64> {
        let blocks = data.len() / self.block.len();
        let part = blocks.div_ceil(self.pool.current_num_threads()).max(1);
        self.pool.install(|| {
            data.par_chunks_mut(part * self.block.len())
                .enumerate()
                .map(|(number, part_data)| {
                    let tags = self.cipher.encrypt((number * part) as u64, part_data)?;
                    Ok(tags.unwrap_or(0))
                })
                .try_reduce(|| 0, |one, other| Ok(one ^ other))
        })
    }

    pub(crate) fn figures(&self, work: &str) -> Vec<Figure> {
        let table = format!("one request on {}, {work}", plural(self.pool.current_num_threads(), "thread"));
        let basis = format!("block {}", self.block.bytes());
        let mut figures = Vec::new();
        for (size, times) in SIZES.into_iter().zip(&self.times) {
            let row = ByteCount(size as u64).to_string();
            let each = |value: fn(&[f64; 2]) -> f64| times.iter().map(value).collect();
            for (column, values) in [
                (WHOLE, each(|[whole, _]| *whole)),
                (SPLIT, each(|[_, split]| *split)),
                (GAIN, each(|[whole, split]| whole / split)),
            ] {
                figures.extend(Figure::new(&table, &row, column, &basis, values));
            }
        }
        figures
    }
}

/// Microseconds for one call, measured for about `time`.
fn repeat(time: Duration, size: usize, mut call: impl FnMut(&mut [u8]) -> Result<u64>) -> Result<f64> {
    let mut data = vec![0; size];
    call(&mut data)?;
    let start = Instant::now();
    let mut calls = 0.0;
    loop {
        interrupt::check()?;
        call(&mut data)?;
        calls += 1.0;
        if start.elapsed() >= time {
            return Ok(start.elapsed().as_secs_f64() * 1e6 / calls);
        }
    }
}

/// From which size on splitting pays: there and for all larger ones, even the worst round gains.
pub(crate) fn verdict(figures: &[Figure]) -> String {
    let gains: Vec<_> = figures.iter().filter(|figure| figure.column == GAIN.name).collect();
    let from = gains.iter().rposition(|figure| figure.least <= 1.0).map_or(0, |last| last + 1);
    match gains.get(from) {
        Some(figure) => format!("splitting a request over the pool pays from {} on", figure.row),
        None => "splitting a request over the pool does not reliably pay at any size here".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::work::WorkKind;

    #[test]
    fn splitting_changes_no_byte() {
        for kind in [WorkKind::Xts, WorkKind::Gcm, WorkKind::Aegis] {
            for threads in [1, 2, 3] {
                let cipher = kind.cipher(BlockSize::B4096).unwrap().unwrap();
                let threads = NonZeroUsize::new(threads).unwrap();
                let splitting = Splitting::new(cipher, BlockSize::B4096, threads).unwrap();
                for size in [4096, 16 << 10, 256 << 10] {
                    assert!(splitting.once(size).unwrap(), "{kind:?}, {threads} threads, {size} bytes");
                }
            }
        }
    }

    #[test]
    fn splitting_pays_from_where_no_round_of_any_larger_size_lost() {
        let figure = |row: &str, rounds: [f64; 2]| Figure::new("t", row, GAIN, "", rounds.into()).unwrap();
        let gains = [
            figure("a", [1.5, 1.5]),
            figure("b", [0.9, 1.5]),
            figure("c", [1.1, 1.2]),
            figure("d", [1.9, 2.0]),
        ];
        assert!(verdict(&gains).ends_with("pays from c on"));
        assert!(verdict(&gains[..2]).contains("not reliably"));
        assert!(verdict(&gains[2..]).ends_with("pays from c on"));
    }
}
