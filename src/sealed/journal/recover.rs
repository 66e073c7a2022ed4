//! Recovery: what the journal says beyond the superblock's trees (docs/sealed-format.md, "Recovery",
//! steps 3 and 4).

use std::collections::VecDeque;

use rayon::prelude::*;

use crate::anchor::Record as Anchored;
use crate::error::{Error, ErrorKind, Result};
use crate::sealed::keys::epoch::Binding;
use crate::sealed::keys::keyring::Keyring;
use crate::sealed::layout::{BLOCK, Layout};
use crate::sealed::mutants::{Mutant, active};
use crate::sealed::pointer::{BlkPtr, Target, epoch_of};
use crate::sealed::store::Store;
use crate::sealed::superblock::fields::{Link, Superblock};
use crate::sealed::trees::bits::index;

use super::blocks::{self, Entry, LARGEST_GROUP, Record as Block, most_in_group};
use super::stage::Stage;

/// Groups of at least so many entries are opened by all CPUs.
const PARALLEL: usize = 64;

/// Journal blocks read at once.
const BATCH: u64 = 256;

/// Blocks that are sorted before they are added to the overlay.
const MOST_IN_BATCH: usize = 1 << 18;

/// Most entries of groups that are not known to be durable: a writer syncs once it has 2^18 of them, and the
/// group that makes it do so may have as many as a group may.
const MOST_WAITING: u64 = (1 << 18) + LARGEST_GROUP - 1;

/// What the journal gave.
pub(crate) struct Recovered {
    /// What it changes in the tree.
    pub(crate) overlay: Stage,
    /// Its last block that counts.
    pub(crate) tail: Link,
}

/// Walks the chain from the superblock's cut on.
///
/// # Errors
/// [`ErrorKind::TamperedBlock`] when the chain does not reach what the last mount accepted,
/// [`ErrorKind::StaleVolume`] when it does not carry what the anchor remembers, [`ErrorKind::CorruptHeader`]
/// when it has more at once than any writer gives it; any error of the store.
pub(crate) fn recover(
    store: &Store,
    layout: &Layout,
    keys: &Keyring,
    superblock: &Superblock,
    anchor: Option<&Anchored>,
) -> Result<Recovered> {
    let known = superblock.fence.seq.max(superblock.cut.seq).max(anchor.map_or(0, |record| record.sequence));
    let mut walk = Walk {
        store,
        layout,
        keys,
        superblock,
        anchor,
        link: superblock.cut,
        known,
        at_anchor: None,
        fence_seen: superblock.cut.seq >= superblock.fence.seq,
        group: Vec::new(),
        waiting: VecDeque::new(),
        waiting_entries: 0,
        overlay: Stage::new(),
        batch: Vec::new(),
        accepted: superblock.cut,
    };
    walk.look_for_anchor();
    walk.run()?;
    walk.finish()
}

/// A complete group.
struct Group {
    last: Link,
    entries: Vec<Entry>,
}

struct Walk<'a> {
    store: &'a Store,
    layout: &'a Layout,
    keys: &'a Keyring,
    superblock: &'a Superblock,
    anchor: Option<&'a Anchored>,
    /// The last block of the chain so far.
    link: Link,
    /// The last block that is known to have been durable before the crash.
    known: u64,
    /// The tag at the sequence number that the anchor remembers.
    at_anchor: Option<[u8; 16]>,
    fence_seen: bool,
    /// Entries of the group that has not ended yet.
    group: Vec<Entry>,
    /// Groups that are not known to be durable so far.
    waiting: VecDeque<Group>,
    /// Entries of those.
    waiting_entries: u64,
    overlay: Stage,
    /// Blocks of accepted groups that are not in the overlay yet.
    batch: Vec<(u64, BlkPtr)>,
    accepted: Link,
}

impl Walk<'_> {
    /// Takes blocks until one does not follow, at most one lap of the ring.
    fn run(&mut self) -> Result<()> {
        let ring = self.layout.journal_blocks();
        let (mut left, mut most) = (ring, BATCH);
        let mut bytes = Vec::new();
        while left > 0 {
            let next = self.link.seq + 1;
            let batch = left.min(most).min(ring - next % ring);
            bytes.resize(index(batch) * BLOCK, 0);
            match self.store.read(self.layout.journal_block(next), &mut bytes) {
                // A bad sector behind the chain's end is nobody's loss.
                Err(_) if batch > 1 => {
                    most = 1;
                    continue;
                }
                result => result?,
            }
            for block in self.open_batch(&mut bytes)? {
                let Some(block) = block else { return Ok(()) };
                self.take(block)?;
            }
            left -= batch;
        }
        Ok(())
    }

    /// Opens the blocks of a batch, each as the successor of the one before it: what those claim to be
    /// their tags is true if they open, and beside the point if they do not.
    fn open_batch(&self, bytes: &mut [u8]) -> Result<Vec<Option<Block>>> {
        let before = bytes.chunks_exact(BLOCK).map(blocks::tag_of);
        let previous: Vec<[u8; 16]> = std::iter::once(self.link.tag).chain(before).collect();
        let open = |(number, block): (usize, &mut [u8])| {
            let seq = self.link.seq + 1 + number as u64;
            if !self.epoch_fits(seq, blocks::version_of(block)) {
                return Ok(None);
            }
            blocks::open(self.keys, block, seq, &previous[number])
        };
        if bytes.len() / BLOCK >= PARALLEL && open((0, &mut bytes[..BLOCK].to_vec()))?.is_some() {
            return bytes.par_chunks_exact_mut(BLOCK).enumerate().map(open).collect();
        }
        let mut blocks = Vec::new();
        for block in bytes.chunks_exact_mut(BLOCK).enumerate() {
            blocks.push(open(block)?);
            if matches!(blocks.last(), Some(None)) {
                break;
            }
        }
        Ok(blocks)
    }

    /// What the last mount accepted is of earlier epochs, what it wrote is of its own: a group that a
    /// mount dropped can never come back.
    fn epoch_fits(&self, seq: u64, version: u64) -> bool {
        match seq <= self.superblock.fence.seq {
            true => epoch_of(version) < self.superblock.epoch,
            false => epoch_of(version) == self.superblock.epoch,
        }
    }

    fn take(&mut self, block: Block) -> Result<()> {
        self.link = Link { seq: self.link.seq + 1, tag: block.tag };
        self.look_for_anchor();
        self.fence_seen |= self.link == self.superblock.fence;
        self.known = self.known.max(block.synced.min(self.link.seq));
        self.group.extend(block.entries);
        at_most(self.group.len() as u64, most_in_group(self.layout), "one group")?;
        if block.commit {
            let entries = std::mem::take(&mut self.group);
            self.waiting_entries += entries.len() as u64;
            self.waiting.push_back(Group { last: self.link, entries });
        }
        while self.waiting.front().is_some_and(|group| group.last.seq <= self.known) {
            let Some(group) = self.waiting.pop_front() else { break };
            self.waiting_entries -= group.entries.len() as u64;
            self.accept(&group)?;
        }
        at_most(self.waiting_entries, MOST_WAITING, "groups that nobody waited for")
    }

    fn look_for_anchor(&mut self) {
        if self.anchor.is_some_and(|record| record.sequence == self.link.seq) {
            self.at_anchor = Some(self.link.tag);
        }
    }

    fn accept(&mut self, group: &Group) -> Result<()> {
        for entry in &group.entries {
            let len = match entry.target {
                Target::Block(_) => 1,
                Target::Run(len) => len,
            };
            let end = entry.lba.checked_add(len).filter(|end| *end <= self.layout.logical_blocks());
            let end = end.ok_or_else(|| {
                Error::new(ErrorKind::CorruptHeader, "the journal speaks of blocks beyond the volume's end")
            })?;
            match entry.target {
                Target::Block(pointer) => self.batch.push((entry.lba, pointer)),
                Target::Run(_) => {
                    self.insert_batch();
                    self.overlay.insert_run_alone(entry.lba..end, |_| {});
                }
            }
        }
        if self.batch.len() >= MOST_IN_BATCH {
            self.insert_batch();
        }
        self.accepted = group.last;
        Ok(())
    }

    /// Adds blocks to the overlay: sorted, since neighbours are faster one after the other. Of two for one
    /// place the later stays the later.
    fn insert_batch(&mut self) {
        self.batch.par_sort_by_key(|(lba, _)| *lba);
        self.batch.drain(..).for_each(|(lba, pointer)| self.overlay.insert_blocks(lba, &[pointer], |_| {}));
    }

    /// Looks at the data of the groups that may not have been durable, in order, and ends before the
    /// first whose data is not all there.
    fn finish(mut self) -> Result<Recovered> {
        if !self.fence_seen {
            let what =
                format!("the journal ends at block {} and was longer at the last mount", self.link.seq);
            return Err(Error::new(ErrorKind::TamperedBlock, what)
                .hint("the store was changed behind our back, or is failing"));
        }
        if let Some(record) = self.anchor {
            record.check(self.superblock.generation, self.at_anchor)?;
        }
        while let Some(group) = self.waiting.pop_front() {
            let believe =
                active(Mutant::BelieveTail) || active(Mutant::BelieveAllButLast) && !self.waiting.is_empty();
            if !believe && !self.data_is_there(&group)? {
                let dropped = 1 + self.waiting.len();
                tracing::warn!(
                    groups = dropped,
                    from = self.accepted.seq,
                    "dropped writes that a crash had cut off; none had been flushed"
                );
                break;
            }
            self.accept(&group)?;
        }
        self.insert_batch();
        Ok(Recovered { overlay: self.overlay, tail: self.accepted })
    }

    fn data_is_there(&self, group: &Group) -> Result<bool> {
        let intact = |entry: &Entry| {
            let Target::Block(pointer) = entry.target else { return Ok(true) };
            if self.layout.bit_of_block(pointer.pba).is_none() {
                return Ok(false);
            }
            let mut block = [0; BLOCK];
            self.store.read(pointer.pba, &mut block)?;
            let binding = Binding::data(&self.keys.volume(), entry.lba);
            match self.keys.open(pointer.ver, &pointer.tag, &binding, &mut block) {
                Ok(()) => Ok(true),
                Err(error) if error.kind() == ErrorKind::TamperedBlock => Ok(false),
                Err(error) => Err(error),
            }
        };
        if group.entries.len() < PARALLEL {
            return group.entries.iter().map(intact).try_fold(true, |all, one| Ok(all && one?));
        }
        group.entries.par_iter().map(intact).try_reduce(|| true, |a, b| Ok(a && b))
    }
}

/// What is held in memory before it can be added to the overlay has bounds, whoever wrote the journal.
fn at_most(entries: u64, most: u64, whose: &str) -> Result<()> {
    if entries <= most {
        return Ok(());
    }
    let what = format!("the journal has more than {most} entries of {whose}");
    Err(Error::new(ErrorKind::CorruptHeader, what).hint("put the volume back from a backup"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use uuid::Uuid;

    use crate::backing::MemoryBacking;
    use crate::crypto::Suite;
    use crate::sealed::header::fields::HeaderPin;
    use crate::sealed::journal::blocks::{ENTRIES, Stamp};
    use crate::sealed::keys::schedule::{FreshSalt, KeySchedule, VolumeId};
    use crate::sealed::layout::Parameters;
    use crate::secret::{SecretBytes, VolumeKey};

    /// A store with nothing but a journal, and who writes it.
    struct Journal {
        store: Arc<Store>,
        layout: Layout,
        keys: Keyring,
        link: Link,
        synced: u64,
    }

    impl Journal {
        fn of(journal_blocks: u32) -> Self {
            let parameters = Parameters { journal_blocks, ..Parameters::tiny(200) };
            let store = Arc::new(MemoryBacking::new(parameters.store_size().unwrap()));
            let (store, layout) = (Arc::new(Store::new(store)), Layout::new(parameters).unwrap());
            let id = VolumeId { uuid: Uuid::from_bytes([1; 16]), suite: Suite::Aes256Gcm };
            let key = VolumeKey::new(SecretBytes::copy_of(&[2; 32]).unwrap());
            let schedule = KeySchedule::new(id, &key).unwrap();
            let keys = Keyring::found(schedule, Arc::clone(&store), layout, 0, [3; 32]).unwrap();
            let keys = keys.advance(FreshSalt::for_tests([4; 32])).unwrap();
            Self { store, layout, keys, link: Link::default(), synced: 0 }
        }

        /// Writes a group of so many entries; one that is not `whole` lacks its end.
        fn group(&mut self, entries: u64, whole: bool) -> &mut Self {
            let entries = vec![Entry { lba: 7, target: Target::Run(1) }; index(entries)];
            let blocks = entries.len().div_ceil(ENTRIES);
            for (number, chunk) in entries.chunks(ENTRIES).enumerate() {
                let commit = whole && number + 1 == blocks;
                let (seq, previous) = (self.link.seq + 1, self.link.tag);
                let stamp = Stamp { seq, previous, synced: self.synced, commit };
                let mut block = [0; BLOCK];
                let version = self.keys.version().unwrap();
                let tag = blocks::seal(&self.keys, version, &stamp, chunk, &mut block).unwrap();
                self.store.write(self.layout.journal_block(seq), &block).unwrap();
                self.link = Link { seq, tag };
            }
            self
        }

        /// What recovery says: the last block that counts, or why none does.
        fn recover(&self) -> Result<u64, String> {
            let (epoch, salt) = self.keys.epoch();
            let superblock = Superblock {
                uuid: [1; 16],
                generation: 2,
                header: HeaderPin { sequence: 1, digest: [0; 32] },
                parameters: *self.layout.parameters(),
                map_root: BlkPtr::HOLE,
                bitmap_root: BlkPtr::HOLE,
                cut: Link::default(),
                fence: Link::default(),
                epoch,
                salt,
            };
            match recover(&self.store, &self.layout, &self.keys, &superblock, None) {
                Ok(recovered) => Ok(recovered.tail.seq),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::CorruptHeader);
                    Err(error.to_string())
                }
            }
        }
    }

    /// docs/sealed-format.md, "Recovery", step 4. Also of a group without an end, which would otherwise be
    /// gathered for a whole ring and then dropped.
    #[test]
    fn a_group_beyond_the_formats_bound_is_refused() {
        for (ring, most) in [(8, 400_u64), (1400, 65_536)] {
            let last = most.div_ceil(ENTRIES as u64);
            assert_eq!(Journal::of(ring).group(most, true).recover(), Ok(last));
            assert_eq!(Journal::of(ring).group(most, false).recover(), Ok(0));
            for whole in [true, false] {
                let refused = Journal::of(ring).group(most + 1, whole).recover().unwrap_err();
                assert!(refused.contains(&format!("more than {most} entries of one group")), "{refused}");
            }
        }
    }

    #[test]
    fn more_groups_than_a_writer_leaves_unsynced_are_refused() {
        let mut journal = Journal::of(4000);
        for _ in 0..4 {
            journal.group(LARGEST_GROUP, true);
        }
        let first_four = journal.link.seq;
        let last = journal.group(LARGEST_GROUP - 1, true).link.seq;
        assert_eq!(journal.recover(), Ok(last));
        let refused = journal.group(1, true).recover().unwrap_err();
        assert!(refused.contains("groups that nobody waited for"), "{refused}");

        let mut journal = Journal::of(4000);
        for _ in 0..4 {
            journal.group(LARGEST_GROUP, true);
        }
        journal.synced = first_four;
        let last = journal.group(LARGEST_GROUP, true).link.seq;
        assert_eq!(journal.recover(), Ok(last), "a sync makes room for more");
    }
}
