//! What a host can do to a store: change it anywhere, put parts of it back, put all of it back. The
//! answer is an error, a refusal or, without an anchor, a state that the volume once had as a whole.

use std::collections::HashMap;
use std::sync::Arc;

use hostveil::anchor::{Anchor, AnchorMode};
use hostveil::backing::Backing;
use hostveil::block::{BufferPool, Disk, Durability};
use hostveil::env::OsEntropy;
use hostveil::error::{ErrorKind, Result};
use hostveil::sealed::{Device, KeySchedule, Limits, MountOptions, Parameters, format_volume};
use hostveil::units::{ByteCount, ByteOffset};

use crate::disk::{Crash, SimAnchor, SimDisk};
use crate::machine::{HEADER, keys, keys_of};
use crate::random::Random;

const PARAMETERS: Parameters =
    Parameters { logical_blocks: 300, group_shift: 7, group_spare: 8, journal_blocks: 16, epochs: 64 };

type Image = HashMap<u64, Arc<[u8; 4096]>>;
/// First bytes of each block.
type State = Vec<u8>;

struct Victim {
    store: Arc<SimDisk>,
    anchor: Option<Arc<SimAnchor>>,
    /// Every state that the volume was in after a flush, and its store then.
    past: Vec<(State, Image)>,
    now: State,
}

fn options(anchor: Option<&Arc<SimAnchor>>) -> MountOptions {
    let anchor = anchor.map(|anchor| (Arc::clone(anchor) as Arc<dyn Anchor>, AnchorMode::Strict));
    let limits = Some(Limits { page_cache: 0, overlay: 1000, punch: 0 });
    MountOptions { read_only: false, header: HEADER, anchor, limits, clocks: (0, 0) }
}

fn mount(store: &Arc<SimDisk>, anchor: Option<&Arc<SimAnchor>>) -> Result<Device> {
    mount_with(keys(), store, anchor)
}

fn mount_with(keys: KeySchedule, store: &Arc<SimDisk>, anchor: Option<&Arc<SimAnchor>>) -> Result<Device> {
    Device::mount(&(Arc::clone(store) as Arc<dyn Backing>), keys, &options(anchor), &OsEntropy)
}

impl Victim {
    /// A volume with several mounts, checkpoints and a journal behind it.
    fn new(anchored: bool) -> Self {
        Self::with_keys(anchored, keys)
    }

    /// The same guest's work on a volume with these keys.
    fn with_keys(anchored: bool, keys: fn() -> KeySchedule) -> Self {
        let store = Arc::new(SimDisk::new(PARAMETERS.store_size().unwrap().0));
        let anchor = anchored.then(|| Arc::new(SimAnchor::new(Arc::clone(&store))));
        let kept = anchor.as_ref().map(|anchor| Arc::clone(anchor) as Arc<dyn Anchor>);
        format_volume(
            &(Arc::clone(&store) as Arc<dyn Backing>),
            keys(),
            HEADER,
            PARAMETERS,
            kept,
            &OsEntropy,
        )
        .unwrap();
        let mut victim = Self { store, anchor, past: Vec::new(), now: vec![0; 300] };
        victim.remember();
        let mut random = Random::new(5);
        for round in 0..4 {
            let device = mount_with(keys(), &victim.store, victim.anchor.as_ref()).unwrap();
            for _ in 0..6 {
                victim.write(&device, &mut random);
                Disk::new(device.clone()).flush().unwrap();
                victim.remember();
            }
            if round < 3 {
                device.run_checkpoint().unwrap();
                victim.remember();
            }
        }
        victim
    }

    fn write(&mut self, device: &Device, random: &mut Random) {
        let (disk, pool) = (Disk::new(device.clone()), BufferPool::new(0));
        for _ in 0..6 {
            let (lba, value) = (random.index(300), u8::try_from(random.below(255)).unwrap() + 1);
            let data = pool.copy_of(&[value; 4096]).unwrap();
            disk.write(ByteOffset(lba as u64 * 4096), data, Durability::Flush).unwrap();
            self.now[lba] = value;
        }
        let lba = random.index(290);
        disk.discard(ByteOffset(lba as u64 * 4096), ByteCount(10 * 4096), Durability::Flush).unwrap();
        self.now[lba..lba + 10].fill(0);
    }

    fn remember(&mut self) {
        self.past.push((self.now.clone(), self.store.image()));
    }

    fn image(&self) -> &Image {
        &self.past.last().unwrap().1
    }

    /// Puts `image` in the store's place, mounts it, and reads every block.
    ///
    /// The rule: what can be read is, all of it, of one state that the volume once had; with an anchor,
    /// of the present one.
    fn suffers(&self, image: &Image, what: &str) -> Outcome {
        self.store.restore(image);
        self.store.crash(Crash::Power, 1);
        let anchored = self.anchor.as_ref().map(|anchor| anchor.kept());
        let outcome = self.read_all(what);
        if let (Some(anchor), Some(kept)) = (&self.anchor, anchored) {
            anchor.keep(kept);
        }
        outcome
    }

    fn read_all(&self, what: &str) -> Outcome {
        let device = match mount(&self.store, self.anchor.as_ref()) {
            Ok(device) => Disk::new(device),
            Err(error) => return Outcome::Refused(error.kind()),
        };
        let mut found: Vec<Option<u8>> = Vec::new();
        for lba in 0..300 {
            let mut block = [0x5a; 4096];
            match device.read(ByteOffset(lba * 4096), &mut block) {
                Ok(()) => {
                    assert!(block.iter().all(|byte| *byte == block[0]), "{what}: block {lba} is mangled");
                    found.push(Some(block[0]));
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::TamperedBlock, "{what}");
                    found.push(None);
                }
            }
        }
        let fits = |state: &State| state.iter().zip(&found).all(|(was, is)| is.is_none_or(|is| is == *was));
        let state = self.past.iter().rposition(|(state, _)| fits(state));
        let state = state.unwrap_or_else(|| panic!("{what}: what is read was never the volume's state"));
        assert!(
            self.anchor.is_none() || state + 1 == self.past.len(),
            "{what}: an old state, with an anchor"
        );
        if found.iter().any(Option::is_none) { Outcome::Errors } else { Outcome::State(state) }
    }
}

/// What came of an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The volume does not mount.
    Refused(ErrorKind),
    /// It mounts, and some blocks are errors.
    Errors,
    /// It is whole, in this of its states.
    State(usize),
}

fn sorted(image: &Image) -> Vec<u64> {
    let mut blocks: Vec<u64> = image.keys().copied().collect();
    blocks.sort_unstable();
    blocks
}

fn with(image: &Image, block: u64, change: impl FnOnce(&mut [u8; 4096])) -> Image {
    let mut changed = image.clone();
    let content = changed.entry(block).or_insert_with(|| Arc::new([0; 4096]));
    change(Arc::make_mut(content));
    changed
}

/// Bits of every block that the volume has ever written: data, pages, journal, superblocks, salts.
#[test]
fn a_changed_bit_is_never_data() {
    for anchored in [false, true] {
        let victim = Victim::new(anchored);
        let mut random = Random::new(9);
        let mut outcomes = [0; 3];
        for block in sorted(victim.image()) {
            for bit in [random.index(512), random.index(32_768)] {
                let image = with(victim.image(), block, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
                match victim.suffers(&image, &format!("bit {bit} of block {block}")) {
                    Outcome::Refused(_) => outcomes[0] += 1,
                    Outcome::Errors => outcomes[1] += 1,
                    Outcome::State(_) => outcomes[2] += 1,
                }
            }
        }
        assert!(outcomes.iter().all(|count| *count > 0), "the attack reaches everything: {outcomes:?}");
    }
}

/// Zeroes are what a hole would be, were it not for the pointer above it.
#[test]
fn a_block_of_zeroes_is_no_hole() {
    let victim = Victim::new(false);
    for block in sorted(victim.image()) {
        let image = with(victim.image(), block, |bytes| bytes.fill(0));
        victim.suffers(&image, &format!("zeroes for block {block}"));
    }
}

#[test]
fn blocks_that_change_places_do_not_open() {
    let victim = Victim::new(true);
    let blocks = sorted(victim.image());
    let mut random = Random::new(3);
    for _ in 0..400 {
        let (one, two) = (random.pick(&blocks), random.pick(&blocks));
        let mut image = victim.image().clone();
        let (a, b) = (Arc::clone(&image[&one]), Arc::clone(&image[&two]));
        image.insert(one, b);
        if random.below(2) == 0 {
            image.insert(two, a);
        }
        victim.suffers(&image, &format!("block {two} in place of {one}"));
    }
}

/// Of a volume in which the same guest wrote the same: one that has only the UUID in common with ours, one that
/// has only the key, and one that has neither. Block by block, and whole.
#[test]
fn blocks_of_another_volume_do_not_open() {
    let victim = Victim::new(false);
    let others: [fn() -> KeySchedule; 3] =
        [|| keys_of([7; 16], [0x43; 32]), || keys_of([8; 16], [0x42; 32]), || keys_of([8; 16], [0x43; 32])];
    for (number, keys) in others.into_iter().enumerate() {
        let other = Victim::with_keys(false, keys);
        let mut errors = 0;
        for (block, content) in other.image() {
            let image = with(victim.image(), *block, |bytes| *bytes = **content);
            let outcome = victim.suffers(&image, &format!("block {block} of volume {number}"));
            errors += u32::from(outcome == Outcome::Errors);
        }
        assert!(errors > 0, "data is among it");
        let whole = victim.suffers(other.image(), &format!("volume {number}"));
        assert!(matches!(whole, Outcome::Refused(_)), "{whole:?}");
    }
}

/// What lies behind some block is gone, or there is more than there was.
#[test]
fn a_store_of_another_length_is_no_other_volume() {
    for anchored in [false, true] {
        let victim = Victim::new(anchored);
        let size = victim.store.len().unwrap().0;
        let blocks = sorted(victim.image());
        for last in &blocks {
            victim.store.restore(victim.image());
            victim.store.resize(last * 4096 + 512);
            let shorter = victim.store.image();
            let outcome = victim.suffers(&shorter, &format!("nothing from block {last} on"));
            let whole = Outcome::State(victim.past.len() - 1);
            assert!(outcome != whole, "block {last} is no longer there");
        }
        victim.store.resize(size + (1 << 20));
        let outcome = victim.suffers(victim.image(), "room behind the volume");
        assert_eq!(outcome, Outcome::State(victim.past.len() - 1));
    }
}

/// One block as it was at some earlier time: data, a page, a journal block, a superblock's slot.
#[test]
fn an_old_block_is_not_new_again() {
    for anchored in [false, true] {
        let victim = Victim::new(anchored);
        for (time, (_, old)) in victim.past.iter().enumerate() {
            for block in sorted(old) {
                if old.get(&block) != victim.image().get(&block) {
                    let image = with(victim.image(), block, |bytes| *bytes = *old[&block]);
                    victim.suffers(&image, &format!("block {block} as of {time}"));
                }
            }
        }
    }
}

/// All superblock slots of an earlier time over what the store has now.
#[test]
fn an_old_root_does_not_mix_times() {
    for anchored in [false, true] {
        let victim = Victim::new(anchored);
        for (time, (_, old)) in victim.past.iter().enumerate() {
            let mut image = victim.image().clone();
            for slot in [16, 32, 48, 64] {
                image.insert(slot, old.get(&slot).cloned().unwrap_or_else(|| Arc::new([0; 4096])));
            }
            victim.suffers(&image, &format!("superblocks as of {time}"));
        }
    }
}

#[test]
fn the_whole_volume_as_it_was_is_seen_with_an_anchor_only() {
    for anchored in [false, true] {
        let victim = Victim::new(anchored);
        for (time, (_, old)) in victim.past.iter().enumerate() {
            let last = time + 1 == victim.past.len();
            match victim.suffers(old, &format!("the volume as of {time}")) {
                Outcome::State(state) => assert!(last || !anchored, "{state}"),
                Outcome::Refused(kind) => assert!(anchored && !last && kind == ErrorKind::StaleVolume),
                Outcome::Errors => panic!("an old volume is whole in itself"),
            }
        }
    }
}

/// The journal from some block on is gone: what it had since the last mount cannot be missed without an
/// anchor; what the last mount had accepted can.
#[test]
fn a_journal_cut_short_is_an_older_state_at_most() {
    for anchored in [false, true] {
        let victim = Victim::new(anchored);
        let journal = journal_blocks(&victim);
        let mut refused = 0;
        for keep in 0..journal.len() {
            let mut image = victim.image().clone();
            journal[keep..].iter().for_each(|block| {
                image.remove(block);
            });
            refused += u32::from(matches!(
                victim.suffers(&image, &format!("{keep} blocks of journal")),
                Outcome::Refused(_)
            ));
        }
        assert!(refused > 0 || !anchored);
    }
}

/// The journal's blocks: the ring lies behind the first copy of the epoch table.
fn journal_blocks(victim: &Victim) -> Vec<u64> {
    (257..257 + 16).filter(|block| victim.image().contains_key(block)).collect()
}

/// Flags, count and the other fields of a journal block's header.
#[test]
fn a_journal_blocks_header_is_authentic() {
    let victim = Victim::new(true);
    for block in journal_blocks(&victim) {
        for byte in 0..48 {
            let image = with(victim.image(), block, |bytes| bytes[byte] ^= 1);
            victim.suffers(&image, &format!("byte {byte} of journal block {block}"));
        }
    }
}

/// Fewer entries than were sealed. (With the header's fault switched on, `mutants.rs` sees what this
/// would do.)
pub(crate) fn forge_count() {
    let mut victim = Victim::new(false);
    let device = mount(&victim.store, None).unwrap();
    let pool = BufferPool::new(0);
    let disk = Disk::new(device);
    for lba in [5, 6] {
        disk.write(ByteOffset(lba * 4096), pool.copy_of(&[0xee; 4096]).unwrap(), Durability::Flush).unwrap();
        victim.now[usize::try_from(lba).unwrap()] = 0xee;
    }
    let before = victim.store.image();
    disk.flush().unwrap();
    victim.remember();
    let written = |block: &u64| before.get(block) != victim.image().get(block);
    let newest = journal_blocks(&victim).into_iter().find(written).unwrap();
    let image = with(victim.image(), newest, |bytes| bytes[6] = 1);
    victim.suffers(&image, "a journal block with one entry of two");
}

#[test]
fn a_forged_count_is_seen() {
    forge_count();
}

/// A checkpoint that ends between a reader's look at the overlay and the tree, or in the middle of the
/// latter.
pub(crate) fn overtake_readers() {
    let victim = Victim::new(false);
    let device = mount(&victim.store, None).unwrap();
    let (disk, pool) = (Disk::new(device.clone()), BufferPool::new(0));
    let write = |byte: u8| {
        disk.write(ByteOffset(0), pool.copy_of(&[byte; 4096]).unwrap(), Durability::Fua).unwrap();
    };
    let read = || {
        let mut block = [0; 4096];
        disk.read(ByteOffset(0), &mut block).unwrap();
        block[0]
    };
    write(1);
    device.run_checkpoint().unwrap();
    write(2);
    // Block 0 of the store, which the engine reads only where a mutant pauses.
    let checkpointed = device.clone();
    crate::hook::at_read(0, move || checkpointed.run_checkpoint().unwrap());
    assert_eq!(read(), 2, "the newest content, or the reader saw the past");
    // Two checkpoints overwrite the very page that a reader is about to read.
    for home in first_map_homes() {
        write(3);
        device.run_checkpoint().unwrap();
        let (device, disk, pool) = (device.clone(), disk.clone(), pool.clone());
        crate::hook::at_read(home, move || {
            for byte in [4, 5] {
                disk.write(ByteOffset(0), pool.copy_of(&[byte; 4096]).unwrap(), Durability::Fua).unwrap();
                device.run_checkpoint().unwrap();
            }
        });
        assert!([3, 5].contains(&read()), "what was there when the reader looked, or when it looked again");
        crate::hook::reading(home);
        assert!(read() == 5 || read() == 3);
    }
}

/// The two homes of the map's lowest page: the first blocks of the first group, which lies behind the
/// epoch table's second copy.
fn first_map_homes() -> [u64; 2] {
    let first = (256 + 1 + 16 + 1_u64).next_multiple_of(128);
    [first, first + 1]
}

#[test]
fn readers_that_are_overtaken_look_again() {
    overtake_readers();
}

/// A group that recovery dropped stays dropped: the host kept its blocks and puts them back.
#[test]
fn a_dropped_group_never_comes_back() {
    let mut victim = Victim::new(false);
    let device = mount(&victim.store, None).unwrap();
    let before = victim.store.image();
    let state = victim.now.clone();
    victim.write(&device, &mut Random::new(77));
    device.commit_later().unwrap();
    // The host has seen all of it, and the medium none of it.
    let seen = victim.store.image();
    victim.now = state;
    victim.store.restore(&before);
    let device = mount(&victim.store, None).unwrap();
    drop(device);
    victim.remember();
    let present = victim.image().clone();
    let mut image = present.clone();
    for (block, content) in &seen {
        if present.get(block) != Some(content) && !(16..=64).contains(block) && *block != 256 {
            image.insert(*block, Arc::clone(content));
        }
    }
    assert_ne!(image, present, "there is something to put back");
    assert_eq!(victim.suffers(&image, "a dropped group"), Outcome::State(victim.past.len() - 1));
}

/// Two copies of one volume, both mounted: neither reads what the other wrote, and, as every mount has a
/// key of its own, they never seal with the same nonce.
#[test]
fn copies_go_their_own_ways() {
    let victim = Victim::new(false);
    let copy = Arc::new(SimDisk::new(PARAMETERS.store_size().unwrap().0));
    copy.restore(victim.image());
    #[cfg(feature = "mutants")]
    hostveil::sealed::mutants::watch_nonces();
    let pool = BufferPool::new(0);
    for (store, byte) in [(&victim.store, 1), (&copy, 2)] {
        let disk = Disk::new(mount(store, None).unwrap());
        for lba in 0..50 {
            disk.write(ByteOffset(lba * 4096), pool.copy_of(&[byte; 4096]).unwrap(), Durability::Fua)
                .unwrap();
        }
    }
    // One copy's newest blocks in the other's places.
    let (one, two) = (victim.store.image(), copy.image());
    let mut mixed = one.clone();
    for (block, content) in &two {
        if *block > 280 && one.get(block) != Some(content) {
            mixed.insert(*block, Arc::clone(content));
        }
    }
    copy.restore(&mixed);
    let disk = match mount(&copy, None) {
        Ok(device) => Disk::new(device),
        Err(_) => return,
    };
    for lba in 0..50 {
        let mut block = [0; 4096];
        if disk.read(ByteOffset(lba * 4096), &mut block).is_ok() {
            assert_eq!(block, [1; 4096]);
        }
    }
}
