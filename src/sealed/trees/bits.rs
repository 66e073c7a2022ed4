//! [`Bits`]: a bitmap of data blocks in memory, cut into the pages that it has on disk.

use crate::sealed::layout::{BLOCK, Layout, PAGE_BITS};

const WORD: u64 = 64;
const PAGE_WORDS: usize = BLOCK / 8;

/// One bit for each data block of a volume, and for the gaps between the groups' last bits and their
/// pages' ends.
#[derive(Clone)]
pub(crate) struct Bits {
    words: Vec<u64>,
}

impl Bits {
    /// No bit set.
    pub(crate) fn none(layout: &Layout) -> Self {
        let bits = layout.groups() * layout.group_bits();
        Self { words: vec![0; index(bits / WORD)] }
    }

    /// Whether a bit is set.
    pub(crate) fn contains(&self, bit: u64) -> bool {
        self.words[index(bit / WORD)] >> (bit % WORD) & 1 == 1
    }

    /// Sets a bit; whether it was clear.
    pub(crate) fn insert(&mut self, bit: u64) -> bool {
        let new = !self.contains(bit);
        self.words[index(bit / WORD)] |= 1 << (bit % WORD);
        new
    }

    /// Clears a bit; whether it was set.
    pub(crate) fn remove(&mut self, bit: u64) -> bool {
        let was = self.contains(bit);
        self.words[index(bit / WORD)] &= !(1 << (bit % WORD));
        was
    }

    /// The first clear bit of `range`.
    pub(crate) fn first_clear(&self, range: std::ops::Range<u64>) -> Option<u64> {
        let mut bit = range.start;
        while bit < range.end {
            let free = !self.words[index(bit / WORD)] >> (bit % WORD);
            if free != 0 {
                return Some(bit + u64::from(free.trailing_zeros())).filter(|found| *found < range.end);
            }
            bit = (bit / WORD + 1) * WORD;
        }
        None
    }

    /// How many clear bits follow from the start of `range` on without a gap, at most all of it.
    pub(crate) fn clear_run(&self, range: std::ops::Range<u64>) -> u64 {
        let mut bit = range.start;
        while bit < range.end {
            let used = self.words[index(bit / WORD)] >> (bit % WORD);
            let here = (WORD - bit % WORD).min(u64::from(used.trailing_zeros()));
            bit += here;
            if used != 0 {
                break;
            }
        }
        bit.min(range.end) - range.start
    }

    /// How many bits of `range` are clear.
    pub(crate) fn count_clear(&self, range: std::ops::Range<u64>) -> u64 {
        let (mut bit, mut clear) = (range.start, 0);
        while bit < range.end {
            let here = (WORD - bit % WORD).min(range.end - bit);
            let used = self.words[index(bit / WORD)] >> (bit % WORD) << (WORD - here);
            clear += here - u64::from(used.count_ones());
            bit += here;
        }
        clear
    }

    /// How many bits differ from those of another bitmap of the same volume.
    pub(crate) fn count_differences(&self, other: &Self) -> u64 {
        let words = self.words.iter().zip(&other.words);
        words.map(|(word, other)| u64::from((word ^ other).count_ones())).sum()
    }

    /// One page as it is on disk.
    pub(crate) fn page(&self, page: u64, into: &mut [u8; BLOCK]) {
        let start = index(page * PAGE_BITS / WORD);
        for (bytes, word) in into.chunks_exact_mut(8).zip(&self.words[start..start + PAGE_WORDS]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }

    /// Takes one page from its form on disk.
    pub(crate) fn set_page(&mut self, page: u64, from: &[u8; BLOCK]) {
        let start = index(page * PAGE_BITS / WORD);
        for (bytes, word) in from.as_chunks::<8>().0.iter().zip(&mut self.words[start..start + PAGE_WORDS]) {
            *word = u64::from_le_bytes(*bytes);
        }
    }
}

/// A number as an index into memory; no target of ours has narrower pointers than 64 bits.
pub(crate) fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sealed::layout::Parameters;
    use proptest::prelude::*;

    fn layout() -> Layout {
        Layout::new(Parameters::tiny(300)).unwrap()
    }

    proptest! {
        #[test]
        fn runs_are_found_as_by_looking_at_every_bit(set in proptest::collection::btree_set(0..400_u64, 0..200), from in 0..400_u64, to in 0..400_u64) {
            let mut bits = Bits::none(&layout());
            set.iter().for_each(|bit| assert!(bits.insert(*bit)));
            let range = from.min(to)..from.max(to);
            prop_assert_eq!(bits.first_clear(range.clone()), range.clone().find(|bit| !set.contains(bit)));
            let run = range.clone().take_while(|bit| !set.contains(bit)).count() as u64;
            prop_assert_eq!(bits.clear_run(range.clone()), run);
            let clear = range.clone().filter(|bit| !set.contains(bit)).count() as u64;
            prop_assert_eq!(bits.count_clear(range), clear);
            let mut other = Bits::none(&layout());
            let differ = set.iter().filter(|bit| *bit % 3 == 0 || !other.insert(**bit)).count() as u64;
            other.insert(401);
            prop_assert_eq!(bits.count_differences(&other), differ + 1);
        }
    }

    #[test]
    fn pages_survive_their_form_on_disk() {
        let mut bits = Bits::none(&layout());
        [0, 63, 64, PAGE_BITS - 1, PAGE_BITS + 5].into_iter().for_each(|bit| assert!(bits.insert(bit)));
        let mut again = Bits::none(&layout());
        let mut page = [0; BLOCK];
        for number in 0..2 {
            bits.page(number, &mut page);
            again.set_page(number, &page);
        }
        assert!(bits.words == again.words && !again.insert(PAGE_BITS + 5) && again.remove(0));
    }
}
