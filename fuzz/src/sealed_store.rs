//! For [`super::sealed_engine`]: a store that its host changes, and in which operations fail; and an anchor
//! that the host cannot reach.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use hostveil::anchor::{Anchor, SignedRecord};
use hostveil::backing::{Backing, Run};
use hostveil::error::{Error, ErrorKind, Result};
use hostveil::units::{ByteCount, ByteOffset};

use super::sealed_volume::{BLOCK, Block};

/// Blocks that are not zeroes.
pub(super) type Image = BTreeMap<u64, Arc<Block>>;

/// The store.
pub(super) struct HostileStore {
    size: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    blocks: Image,
    /// How many more operations succeed, and what fails then: reads (1), writes (2), syncs (4).
    fault: Option<(u8, u8)>,
    /// Operations that have failed.
    failed: u32,
}

impl State {
    /// Whether an operation of that kind fails.
    fn fails(&mut self, kind: u8) -> bool {
        match &mut self.fault {
            Some((left, kinds)) if *kinds & kind != 0 && *left == 0 => {
                self.fault = None;
                self.failed += 1;
                true
            }
            Some((left, kinds)) => {
                *left -= u8::from(*kinds & kind != 0);
                false
            }
            None => false,
        }
    }

    /// Calls `with` for the parts of so many bytes from `at` on that lie in one block each: the block, where
    /// in it, and where in the bytes.
    fn parts(at: u64, len: usize, mut with: impl FnMut(u64, usize, std::ops::Range<usize>)) {
        let mut done = 0;
        while done < len {
            let now = at + done as u64;
            let skip = usize::try_from(now % BLOCK as u64).expect("a part of a block");
            let part = (BLOCK - skip).min(len - done);
            with(now / BLOCK as u64, skip, done..done + part);
            done += part;
        }
    }

    fn write(&mut self, at: u64, data: &[u8]) {
        Self::parts(at, data.len(), |block, skip, part| {
            let block = Arc::make_mut(self.blocks.entry(block).or_insert_with(|| Arc::new([0; BLOCK])));
            block[skip..skip + part.len()].copy_from_slice(&data[part]);
        });
    }
}

impl HostileStore {
    pub(super) fn new(size: ByteCount) -> Self {
        Self { size: size.0, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panicked")
    }

    /// Has an operation of those kinds fail, after so many that succeed.
    pub(super) fn arm(&self, left: u8, kinds: u8) {
        self.lock().fault = Some((left, kinds));
    }

    /// Operations that have failed.
    pub(super) fn failed(&self) -> u32 {
        self.lock().failed
    }

    pub(super) fn image(&self) -> Image {
        self.lock().blocks.clone()
    }

    pub(super) fn put_back(&self, image: &Image) {
        self.lock().blocks.clone_from(image);
    }

    /// Puts back one block, or takes it away where the image has none.
    pub(super) fn put_back_block(&self, image: &Image, block: u64) {
        let content = image.get(&block).cloned().unwrap_or_else(|| Arc::new([0; BLOCK]));
        self.lock().blocks.insert(block, content);
    }

    /// Changes a byte.
    pub(super) fn change(&self, at: u64, bits: u8) {
        let mut byte = [0];
        let mut state = self.lock();
        State::parts(at, 1, |block, skip, _| {
            byte[0] = state.blocks.get(&block).map_or(0, |b| b[skip]) ^ bits;
        });
        state.write(at, &byte);
    }

    /// Blocks that were ever written, in order.
    pub(super) fn written(&self) -> Vec<u64> {
        self.lock().blocks.keys().copied().collect()
    }

    fn check(&self, at: ByteOffset, len: usize) -> Result<()> {
        match at.0.checked_add(len as u64).is_some_and(|end| end <= self.size) {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::OutOfRange, "beyond the store's end")),
        }
    }
}

fn fault() -> Error {
    Error::new(ErrorKind::Io, "a fault")
}

impl Backing for HostileStore {
    fn len(&self) -> Result<ByteCount> {
        Ok(ByteCount(self.size))
    }

    fn read_at(&self, at: ByteOffset, into: &mut [u8]) -> Result<()> {
        self.check(at, into.len())?;
        let mut state = self.lock();
        if state.fails(1) {
            return Err(fault());
        }
        State::parts(at.0, into.len(), |block, skip, part| match state.blocks.get(&block) {
            Some(block) => into[part.clone()].copy_from_slice(&block[skip..skip + part.len()]),
            None => into[part].fill(0),
        });
        Ok(())
    }

    /// One that fails has written the first half.
    fn write_at(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        self.check(at, data.len())?;
        let mut state = self.lock();
        if state.fails(2) {
            state.write(at.0, &data[..data.len() / 2]);
            return Err(fault());
        }
        state.write(at.0, data);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        if self.lock().fails(4) { Err(fault()) } else { Ok(()) }
    }

    fn punch(&self, at: ByteOffset, len: ByteCount) -> Result<()> {
        let len = len.to_usize().ok_or_else(fault)?;
        self.check(at, len)?;
        self.lock().write(at.0, &vec![0; len]);
        Ok(())
    }

    fn run_at(&self, _at: ByteOffset) -> Result<Run> {
        Ok(Run { end: ByteOffset(self.size), allocated: true })
    }
}

/// The anchor.
#[derive(Default)]
pub(super) struct SafeAnchor(Mutex<Option<SignedRecord>>);

impl Anchor for SafeAnchor {
    fn read(&self) -> Result<SignedRecord> {
        let kept = *self.0.lock().expect("no thread panicked");
        kept.ok_or_else(|| Error::new(ErrorKind::NotFound, "no record"))
    }

    fn create(&self, first: &SignedRecord) -> Result<()> {
        *self.0.lock().expect("no thread panicked") = Some(*first);
        Ok(())
    }

    fn compare_and_swap(&self, old: &SignedRecord, new: &SignedRecord) -> Result<()> {
        let mut kept = self.0.lock().expect("no thread panicked");
        if *kept != Some(*old) {
            return Err(Error::new(ErrorKind::AnchorMismatch, "another record"));
        }
        *kept = Some(*new);
        Ok(())
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }
}
