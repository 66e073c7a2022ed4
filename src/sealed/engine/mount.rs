//! Mounting: from a store and its keys to a volume that can be used (docs/sealed-format.md, "Recovery").

use std::sync::Arc;

use crate::anchor::{Anchor, AnchorMode, Record, Session};
use crate::backing::Backing;
use crate::env::Entropy;
use crate::error::{Error, ErrorKind, Result};
use crate::sealed::header::fields::HeaderPin;
use crate::sealed::journal::recover::{Recovered, recover};
use crate::sealed::journal::stage::Stage;
use crate::sealed::keys::keyring::Keyring;
use crate::sealed::keys::salts;
use crate::sealed::keys::schedule::{KeySchedule, MountInputs};
use crate::sealed::layout::{FAN, Layout, Tree};
use crate::sealed::mutants::{Mutant, active};
use crate::sealed::pointer::BlkPtr;
use crate::sealed::store::Store;
use crate::sealed::superblock::fields::{Link, Superblock};
use crate::sealed::trees::allocator::inconsistent;
use crate::sealed::trees::bits::Bits;
use crate::sealed::trees::pages::{Pages, pointer_at};

use super::checkpoint::write_superblock;
use super::core::{Core, Found, Limits};
use super::freshness::Freshness;

/// How a volume is to be mounted.
pub struct MountOptions {
    /// Write nothing, and so draw no epoch.
    pub read_only: bool,
    /// The header that the keys came from: the superblock must name it.
    pub header: HeaderPin,
    /// Where the volume's freshness is remembered, if anywhere.
    pub anchor: Option<(Arc<dyn Anchor>, AnchorMode)>,
    /// What it may cost; the default follows from the volume's size.
    pub limits: Option<Limits>,
    /// CLOCK_REALTIME and CLOCK_BOOTTIME in nanoseconds: two more things by which one mount differs
    /// from all others.
    pub clocks: (u64, u64),
}

/// Mounts a volume. The caller has locked the store.
pub(crate) fn mount(
    backing: &Arc<dyn Backing>,
    keys: KeySchedule,
    options: &MountOptions,
    entropy: &dyn Entropy,
) -> Result<Core> {
    let store = Arc::new(Store::new(Arc::clone(backing)));
    if !options.read_only && !active(Mutant::SyncAfterRead) {
        store.settle()?;
    }
    let state = read_state(backing, store, keys, options)?;
    match options.read_only {
        true => Ok(state.into_core(options)),
        false => begin_epoch(state, options, entropy),
    }
}

/// What is in a store, as an anchor would remember it; nothing is written.
pub(in crate::sealed) fn found(
    backing: &Arc<dyn Backing>,
    keys: KeySchedule,
    options: &MountOptions,
) -> Result<Record> {
    let store = Arc::new(Store::new(Arc::clone(backing)));
    read_state(backing, store, keys, options).map(|state| state.record())
}

/// Begins an epoch on what is in a store, whatever an anchor remembers, as the generation that
/// `generation_of` chooses for it, or the one after that; answers with what the anchor is to remember from now on.
pub(in crate::sealed) fn accept(
    backing: &Arc<dyn Backing>,
    keys: KeySchedule,
    options: &MountOptions,
    generation_of: impl FnOnce(&Record) -> Result<u64>,
    entropy: &dyn Entropy,
) -> Result<Record> {
    let store = Arc::new(Store::new(Arc::clone(backing)));
    store.settle()?;
    let mut state = read_state(backing, store, keys, options)?;
    let found = state.record();
    let mut generation = generation_of(&found)?;
    // The slots of the generation that is found must stay as they are until the new one is durable.
    if generation % 2 == found.generation % 2 {
        generation = generation.saturating_add(1);
    }
    state.superblock.generation = generation - 1;
    begin_epoch(state, options, entropy)?;
    Ok(Record { generation, ..found })
}

/// What is known once everything has been read and nothing written.
struct State {
    store: Arc<Store>,
    layout: Layout,
    keys: Keyring,
    pages: Pages,
    superblock: Superblock,
    bitmap: Bits,
    used: Bits,
    overlay: Stage,
    tail: Link,
    freshness: Freshness,
}

impl State {
    fn record(&self) -> Record {
        let Link { seq: sequence, tag } = self.tail;
        let uuid = self.keys.volume().uuid;
        Record { uuid, generation: self.superblock.generation, sequence, tag }
    }

    fn into_core(self, options: &MountOptions) -> Core {
        let limits = options.limits.unwrap_or_else(|| Limits::for_volume(self.layout.logical_blocks()));
        let Self { store, layout, keys, pages, superblock, bitmap, used, overlay, tail, freshness } = self;
        Core::new(
            Found { store, layout, keys, pages, superblock, bitmap, used, overlay, tail },
            freshness,
            limits,
        )
    }
}

/// Steps 2 to 5: superblock, anchor, journal, bitmap.
fn read_state(
    backing: &Arc<dyn Backing>,
    store: Arc<Store>,
    schedule: KeySchedule,
    options: &MountOptions,
) -> Result<State> {
    let volume = schedule.volume();
    let superblock = crate::sealed::superblock::choose::superblock(
        backing.as_ref(),
        &schedule.superblock_mac()?,
        volume.uuid,
    )?;
    if superblock.header != options.header {
        let what = "the header is not the one that the superblock names";
        return Err(Error::new(ErrorKind::CorruptHeader, what)
            .hint("an older header was put back, or the other copy of the header is the present one"));
    }
    let layout = Layout::new(superblock.parameters)?;
    if store.len()? < layout.store_size() {
        let what =
            format!("the store has {} and the volume in it needs {}", store.len()?, layout.store_size());
        return Err(
            Error::new(ErrorKind::CorruptHeader, what).hint("restore the file's full size from a backup")
        );
    }
    let freshness = open_anchor(options, &schedule)?;
    let keys = Keyring::found(schedule, Arc::clone(&store), layout, superblock.epoch, superblock.salt)?;
    let Recovered { overlay, tail, .. } =
        recover(&store, &layout, &keys, &superblock, freshness.record().as_ref())?;
    let cache = options.limits.map_or(256 << 20, |limits| limits.page_cache);
    let pages = Pages::new(cache);
    let bitmap = read_bitmap(&store, &layout, &keys, &pages, &superblock.bitmap_root)?;
    let used = used_blocks(&layout, &bitmap, &overlay)?;
    Ok(State { store, layout, keys, pages, superblock, bitmap, used, overlay, tail, freshness })
}

/// Reads the anchor; whether the volume is as new as it says is seen from the journal.
fn open_anchor(options: &MountOptions, schedule: &KeySchedule) -> Result<Freshness> {
    let Some((anchor, mode)) = &options.anchor else { return Ok(Freshness::none()) };
    let session = Session::open(Arc::clone(anchor), schedule.anchor_mac()?, schedule.volume().uuid)?;
    Ok(Freshness::of(session, *mode))
}

fn read_bitmap(store: &Store, layout: &Layout, keys: &Keyring, pages: &Pages, root: &BlkPtr) -> Result<Bits> {
    let mut bits = Bits::none(layout);
    let mut todo = vec![(layout.top(Tree::Bitmap), *root)];
    while let Some((page, pointer)) = todo.pop() {
        if pointer.is_hole() {
            continue;
        }
        let content = pages.load(store, keys, page, &pointer)?;
        if page.level == 0 {
            bits.set_page(page.index, &content);
            continue;
        }
        let last = layout.pages(Tree::Bitmap, page.level - 1);
        for slot in (0..FAN).take_while(|slot| page.index * FAN + slot < last) {
            todo.push((page.child(slot), pointer_at(&content, slot)?));
        }
    }
    check_gaps(layout, &bits).map(|()| bits)
}

/// The bits behind each group's last block stand for nothing.
fn check_gaps(layout: &Layout, bits: &Bits) -> Result<()> {
    for group in 0..layout.groups() {
        let first = group * layout.group_bits();
        let gap = first + layout.data_blocks(group)..first + layout.group_bits();
        if bits.clear_run(gap.clone()) != gap.end - gap.start {
            return Err(inconsistent(layout.block_of_bit(gap.start)));
        }
    }
    Ok(())
}

/// What must not be allocated: what the trees refer to, and what the overlay does. Nothing twice.
fn used_blocks(layout: &Layout, bitmap: &Bits, overlay: &Stage) -> Result<Bits> {
    let mut used = bitmap.clone();
    let mut twice = None;
    overlay.for_each_block(|_, pointer| match layout.bit_of_block(pointer.pba) {
        Some(bit) if used.insert(bit) => {}
        _ => twice = Some(pointer.pba),
    });
    twice.map_or(Ok(used), |pba| Err(inconsistent(pba)))
}

/// Steps 6 to 8: from here on this mount's writes are of an epoch of their own, and what recovery
/// dropped stays dropped.
fn begin_epoch(mut state: State, options: &MountOptions, entropy: &dyn Entropy) -> Result<Core> {
    let (epoch, salt) = state.keys.epoch();
    if !salts::has_room(&state.layout, epoch + 1) {
        let what = "the volume was mounted for writing as often as its epoch table allows";
        return Err(
            Error::new(ErrorKind::ReadOnly, what).hint("open it read-only and copy it to a new volume")
        );
    }
    if active(Mutant::SaltWithSuperblock) {
        state.store.sync()?;
    }
    salts::write(&state.store, &state.layout, state.keys.mac(), epoch, &salt)?;
    if active(Mutant::SyncAfterRead) {
        state.store.settle()?;
    }
    if !active(Mutant::NoMountSync) && !active(Mutant::SaltWithSuperblock) {
        state.store.sync()?;
    }
    let (realtime_ns, boottime_ns) = options.clocks;
    let inputs = MountInputs { previous_salt: salt, tail_tag: state.tail.tag, realtime_ns, boottime_ns };
    let fresh = state.keys.schedule().draw_salt(&inputs, entropy)?;
    state.superblock.generation += 1;
    state.superblock.epoch = epoch + 1;
    state.superblock.salt = fresh.bytes();
    state.superblock.fence = state.tail;
    state.keys = state.keys.advance(fresh)?;
    write_superblock(&state.store, &state.superblock, state.keys.mac())?;
    state.store.sync()?;
    state.freshness.advance(state.superblock.generation, state.tail)?;
    Ok(state.into_core(options))
}
