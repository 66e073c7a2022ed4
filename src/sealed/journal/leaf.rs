//! [`Leaf`]: where some of the blocks of one of the map's lowest pages lie.

use crate::sealed::layout::FAN;
use crate::sealed::pointer::BlkPtr;

const _: () = assert!(FAN == u128::BITS as u64, "one bit for each block of a page");

/// Pointers to some of a page's blocks, without room for the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Leaf {
    /// Bit `n`: the page's block `n` is known.
    known: u128,
    /// The pointers of the known blocks, in order.
    places: Vec<BlkPtr>,
}

impl Leaf {
    /// Blocks that are known.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether none is.
    pub(super) fn is_empty(&self) -> bool {
        self.known == 0
    }

    /// How many of the blocks before `slot` are known: where the pointer of `slot` lies or would lie.
    fn rank(&self, slot: usize) -> usize {
        (self.known & !(u128::MAX << slot)).count_ones() as usize
    }

    /// Where block `slot` of the page lies.
    pub(super) fn get(&self, slot: usize) -> Option<BlkPtr> {
        (self.known >> slot & 1 == 1).then(|| self.places[self.rank(slot)])
    }

    /// Fills in what is known of the blocks from `first` on, where `found` has nothing yet.
    pub(super) fn look_up(&self, first: usize, found: &mut [Option<BlkPtr>]) {
        let known = (self.known & mask(first, found.len())) >> first;
        for (slot, pointer) in bits(known).zip(&self.places[self.rank(first)..]) {
            found[slot].get_or_insert(*pointer);
        }
    }

    /// Sets the pointers of the blocks from `first` on; `replaced` receives the places that were theirs.
    pub(super) fn insert(&mut self, first: usize, pointers: &[BlkPtr], replaced: impl FnMut(u64)) {
        let mask = mask(first, pointers.len());
        let before = self.rank(first);
        let inside = before..before + (self.known & mask).count_ones() as usize;
        self.places[inside.clone()].iter().map(|old| old.pba).for_each(replaced);
        if self.places.is_empty() {
            // Most pages get one block, or all at once: no room for more.
            self.places.reserve_exact(pointers.len());
        }
        self.places.splice(inside, pointers.iter().copied());
        self.known |= mask;
    }

    /// Sets the pointers of all blocks that `later` knows.
    pub(super) fn absorb(&mut self, later: &Self, mut replaced: impl FnMut(u64)) {
        let (mut slot, mut rank) = (0, 0);
        while slot < u128::BITS as usize && later.known >> slot != 0 {
            slot += (later.known >> slot).trailing_zeros() as usize;
            let len = (later.known >> slot).trailing_ones() as usize;
            self.insert(slot, &later.places[rank..rank + len], &mut replaced);
            (slot, rank) = (slot + len, rank + len);
        }
    }

    /// Forgets block `slot` if it lies at `pointer`; whether it did.
    pub(super) fn remove(&mut self, slot: usize, pointer: &BlkPtr) -> bool {
        let found = self.get(slot).as_ref() == Some(pointer);
        if found {
            self.places.remove(self.rank(slot));
            self.known &= !mask(slot, 1);
        }
        found
    }

    /// The known blocks of the page, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &BlkPtr)> {
        bits(self.known).zip(&self.places)
    }
}

/// The bits of `len` blocks from `first` on, which are all within the page.
fn mask(first: usize, len: usize) -> u128 {
    let ones = u128::MAX.checked_shr(u128::BITS - u32::try_from(len).unwrap_or(u128::BITS)).unwrap_or(0);
    ones << first
}

/// The numbers of the bits that are set, in order.
fn bits(mut of: u128) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = (of != 0).then(|| of.trailing_zeros() as usize)?;
        of &= of - 1;
        Some(bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn pointer(pba: u64) -> BlkPtr {
        BlkPtr { ver: pba, pba, tag: [1; 16] }
    }

    fn ranges() -> impl Strategy<Value = Vec<(usize, usize)>> {
        proptest::collection::vec((0..128_usize).prop_flat_map(|first| (Just(first), 1..=128 - first)), 0..8)
    }

    /// A leaf, and what it should be.
    fn filled(ranges: &[(usize, usize)], next: &mut u64) -> (Leaf, BTreeMap<usize, BlkPtr>) {
        let (mut leaf, mut model) = (Leaf::default(), BTreeMap::new());
        for (first, len) in ranges {
            let pointers: Vec<_> = (0..*len as u64).map(|n| pointer(*next + n)).collect();
            *next += *len as u64;
            let mut gone = Vec::new();
            leaf.insert(*first, &pointers, |pba| gone.push(pba));
            let old = (*first..).zip(&pointers).filter_map(|(slot, new)| model.insert(slot, *new));
            assert_eq!(gone, old.map(|old| old.pba).collect::<Vec<_>>());
        }
        (leaf, model)
    }

    fn agrees(leaf: &Leaf, model: &BTreeMap<usize, BlkPtr>) {
        assert!(leaf.iter().map(|(slot, p)| (slot, *p)).eq(model.iter().map(|(slot, p)| (*slot, *p))));
        assert_eq!((leaf.len(), leaf.is_empty()), (model.len(), model.is_empty()));
        assert!((0..128).all(|slot| leaf.get(slot) == model.get(&slot).copied()));
        for (first, len) in [(0, 128), (127, 1), (5, 60), (64, 64)] {
            let mut found = vec![None; len];
            found[0] = Some(pointer(9_999_999));
            leaf.look_up(first, &mut found);
            assert_eq!(found[0], Some(pointer(9_999_999)), "what is found stays");
            assert!((1..len).all(|at| found[at] == model.get(&(first + at)).copied()));
        }
    }

    proptest! {
        #[test]
        fn a_leaf_is_a_map_of_a_pages_blocks(first in ranges(), second in ranges(), gone in 0..128_usize) {
            let mut next = 1;
            let (mut leaf, mut model) = filled(&first, &mut next);
            agrees(&leaf, &model);
            let (later, on_top) = filled(&second, &mut next);
            let mut replaced = Vec::new();
            leaf.absorb(&later, |pba| replaced.push(pba));
            let old: Vec<_> =
                on_top.iter().filter_map(|(slot, new)| model.insert(*slot, *new)).map(|p| p.pba).collect();
            prop_assert_eq!(replaced, old);
            agrees(&leaf, &model);

            prop_assert!(!leaf.remove(gone, &pointer(0)), "it lies elsewhere");
            let there = model.remove(&gone);
            prop_assert_eq!(leaf.remove(gone, &there.unwrap_or(pointer(1))), there.is_some());
            agrees(&leaf, &model);
        }
    }
}
