//! Pages of a sealed volume's trees as somebody writes them who has the keys: each opens where it lies, and
//! may say anything. Checked is that mounting, checking, reading and merging end, and that nothing is shown
//! that was not sealed for its place.
//!
//! Input: a byte of choices (1: the map's root is no root; 2: the bitmap's), then for each of the three lowest
//! pages of the map, its root, the bitmap's three and its root a byte that says how many changes follow. A
//! change of a page with pointers: the slot, a kind, and for a genuine pointer its number, for that one
//! elsewhere its number and where, or 32 bytes. A change of a bitmap page: the bit, 16 bits, which is turned.

use hostveil::sealed::Binding;

use super::input::Input;
use super::sealed_volume::{
    BLOCK, Block, FIRST_DATA, Forge, GENUINE, Pointer, SLOTS, exercise, genuine, sign,
};

/// Where groups begin, each with the first homes of its lowest page of the map, and of that of the bitmap.
const GROUPS: u64 = 384;
const GROUP: u64 = 154;
const BITMAP_HOME: u64 = 10;
/// First homes of the roots.
const MAP_ROOT: u64 = 386;
const BITMAP_ROOT: u64 = 396;
/// Pages of the lowest level, of each tree.
const LOWEST: u8 = 3;

/// Runs the target.
pub fn sealed_page(data: &[u8]) {
    let mut input = Input::new(data);
    let choices = input.byte();
    let untouched = input.rest().iter().all(|byte| *byte == 0) && choices.is_multiple_of(4);
    let forge = Forge::new();
    let map: Vec<Pointer> = (0..LOWEST).map(|page| map_page(&forge, &mut input, page)).collect();
    let map_root = root(&forge, &mut input, &map, MAP_ROOT, Binding::map);
    let bitmap: Vec<Pointer> = (0..LOWEST).map(|page| bitmap_page(&forge, &mut input, page)).collect();
    let bitmap_root = root(&forge, &mut input, &bitmap, BITMAP_ROOT, Binding::bitmap);
    let map_root = if choices & 1 == 0 { map_root } else { map[0] };
    let bitmap_root = if choices & 2 == 0 { bitmap_root } else { bitmap[0] };
    let mut superblock = forge.superblock(8, &map_root, &bitmap_root);
    sign(&mut superblock);
    SLOTS.into_iter().take(2).for_each(|slot| forge.put(slot, &superblock));
    let (checked, usable) = exercise(&forge.backing());
    if untouched {
        let checked = checked.expect("a volume");
        assert_eq!((checked.problems, checked.data_blocks, checked.pages), (0, GENUINE, 4));
        assert!(usable);
    }
}

/// A page of the map that says where the genuine data of its 128 blocks is, and then what it is told.
fn map_page(forge: &Forge, input: &mut Input, page: u8) -> Pointer {
    let mut content = [0; BLOCK];
    for number in 0..GENUINE {
        let (lba, _) = genuine(number);
        if lba / 128 == u64::from(page) {
            let at = usize::try_from(lba % 128).expect("a slot") * 32;
            content[at..at + 32].copy_from_slice(&forge.data[usize::try_from(number).expect("few")]);
        }
    }
    change_pointers(input, &mut content, &forge.data);
    let binding = Binding::map(forge.volume(), 1, page.into());
    forge.seal(GROUPS + u64::from(page) * GROUP, &binding, &content)
}

/// A page of the bitmap that says the same, and then what it is told.
fn bitmap_page(forge: &Forge, input: &mut Input, page: u8) -> Pointer {
    let mut content = [0; BLOCK];
    if page == 0 {
        content[0] = 0xff;
    }
    for _ in 0..input.byte() {
        let bit = usize::from(u16::from_be_bytes(input.array())) % (8 * BLOCK);
        content[bit / 8] ^= 1 << (bit % 8);
    }
    let binding = Binding::bitmap(forge.volume(), 1, page.into());
    forge.seal(GROUPS + u64::from(page) * GROUP + BITMAP_HOME, &binding, &content)
}

/// The page above the lowest of a tree, and then what it is told.
fn root(
    forge: &Forge,
    input: &mut Input,
    pages: &[Pointer],
    place: u64,
    binding: fn(&hostveil::sealed::VolumeId, u8, u64) -> Binding,
) -> Pointer {
    let mut content = [0; BLOCK];
    content[..32 * pages.len()].copy_from_slice(pages.as_flattened());
    change_pointers(input, &mut content, pages);
    forge.seal(place, &binding(forge.volume(), 2, 0), &content)
}

fn change_pointers(input: &mut Input, content: &mut Block, genuine: &[Pointer]) {
    for _ in 0..input.byte() {
        let at = usize::from(input.byte() % 128) * 32;
        let pointer = match input.byte() % 4 {
            0 => [0; 32],
            kind @ (1 | 2) => {
                let mut pointer = genuine[usize::from(input.byte()) % genuine.len()];
                if kind == 2 {
                    pointer[8..16].copy_from_slice(&(FIRST_DATA + u64::from(input.byte())).to_le_bytes());
                }
                pointer
            }
            _ => input.array(),
        };
        content[at..at + 32].copy_from_slice(&pointer);
    }
}
