//! Superblocks of a sealed volume as a hostile host writes them, and as one does who has the keys. Checked
//! is that describing and mounting end, that nothing is shown that was not written, and that without the
//! keys the latest genuine superblock is the one that counts, or none.
//!
//! Input: a byte of choices, then changes, three bytes each: where (16 bits, over all four slots) and what.
//! Slots 0 and 1 have generation 8, slots 2 and 3 the older generation 7. With an odd choice, the slots
//! that were changed get a code of the key's afterwards, and the volume is used as far as that goes.

use hostveil::sealed::{describe_superblock, pinned};

use super::input::Input;
use super::sealed_volume::{BLOCK, Block, Forge, HEADER, PARAMETERS, SLOTS, exercise, keys, sign};

/// Runs the target.
pub fn sealed_superblock(data: &[u8]) {
    let mut input = Input::new(data);
    let signed = input.byte() % 2 == 1;
    let forge = Forge::new();
    let genuine = [8, 8, 7, 7].map(|generation| {
        let mut block = forge.superblock(generation, &[0; 32], &[0; 32]);
        sign(&mut block);
        block
    });
    let mut slots: [Block; 4] = genuine;
    while !input.rest().is_empty() {
        let [high, low, value] = input.array();
        let at = usize::from(u16::from_be_bytes([high, low])) % (4 * BLOCK);
        slots[at / BLOCK][at % BLOCK] = value;
    }
    let whole: Vec<bool> = slots.iter().zip(&genuine).map(|(slot, was)| slot == was).collect();
    for ((place, slot), whole) in SLOTS.into_iter().zip(&mut slots).zip(&whole) {
        if signed && !whole {
            sign(slot);
        }
        forge.put(place, slot);
    }
    let backing = forge.backing();
    let _ = describe_superblock(&*backing);
    let found = pinned(&*backing, &keys()).ok();
    if !signed {
        assert_eq!(found, whole.contains(&true).then_some((HEADER, PARAMETERS)));
    }
    let (checked, usable) = exercise(&backing);
    if !whole.contains(&false) {
        assert!(usable && checked.is_some_and(|checked| checked.problems == 0));
    }
}
