//! Journals of a sealed volume as somebody writes them who has the keys: each block opens and follows the
//! one before, and may say anything. Checked is that recovery ends, and that nothing is shown that was
//! not sealed for its place.
//!
//! Input: a byte of choices (1: the cut's sequence number follows in 8 bytes; 2: the fence's and its own
//! tag's first byte), then blocks: a byte (1: ends its group; 2: flags, count and `synced` follow, 12
//! bytes; 4: follows another block; the high half: entries), then its entries: a byte that says which kind,
//! and for a genuine block of data its number, for that block elsewhere its number and where, for a run
//! its start and length, or an entry's 40 bytes.

use super::input::Input;
use super::sealed_volume::{FIRST_DATA, Forge, GENUINE, PARAMETERS, SLOTS, exercise, genuine, sign};

/// More blocks than the ring has.
const MOST: usize = 24;

/// Runs the target.
pub fn sealed_journal(data: &[u8]) {
    let mut input = Input::new(data);
    let forge = Forge::new();
    let mut superblock = forge.superblock(8, &[0; 32], &[0; 32]);
    let choices = input.byte();
    let mut seq = if choices & 1 != 0 { input.u64() } else { 0 };
    superblock[176..184].copy_from_slice(&seq.to_le_bytes());
    if choices & 2 != 0 {
        superblock[200..208].copy_from_slice(&input.u64().to_le_bytes());
        superblock[208] = input.byte();
    }
    let mut previous = [0; 16];
    let mut blocks = 0;
    while !input.rest().is_empty() && blocks < MOST {
        seq = seq.wrapping_add(1);
        previous = seal_block(&forge, &mut input, seq, previous);
        blocks += 1;
    }
    sign(&mut superblock);
    SLOTS.into_iter().take(2).for_each(|slot| forge.put(slot, &superblock));
    let (checked, usable) = exercise(&forge.backing());
    if blocks == 0 && choices.is_multiple_of(4) {
        assert!(usable && checked.is_some_and(|checked| checked.problems == 0));
    }
}

fn seal_block(forge: &Forge, input: &mut Input, seq: u64, previous: [u8; 16]) -> [u8; 16] {
    let head = input.byte();
    let entries: Vec<[u8; 40]> = (0..head >> 4).map(|_| entry(forge, input)).collect();
    let mut header = [0; 48];
    header[..4].copy_from_slice(b"HVJ\n");
    header[4] = head & 1;
    header[6] = head >> 4;
    header[16..24].copy_from_slice(&seq.to_le_bytes());
    if head & 2 != 0 {
        header[4..8].copy_from_slice(&input.array::<4>());
        header[32..40].copy_from_slice(&input.array::<8>());
    }
    let before = if head & 4 != 0 { [0x77; 16] } else { previous };
    forge.seal_journal(seq, &header, &before, entries.as_flattened())
}

fn entry(forge: &Forge, input: &mut Input) -> [u8; 40] {
    let mut entry = [0; 40];
    let kind = input.byte();
    let mut put = |at: usize, field: &[u8]| entry[at..at + field.len()].copy_from_slice(field);
    match kind % 4 {
        0 | 1 => {
            let number = input.byte() % u8::try_from(GENUINE).expect("few");
            put(0, &genuine(number.into()).0.to_le_bytes());
            put(8, &forge.data[usize::from(number)]);
            if kind % 4 == 1 {
                put(0, &u64::from(input.byte()).to_le_bytes());
                put(16, &(FIRST_DATA + u64::from(input.byte())).to_le_bytes());
            }
        }
        2 => {
            let [start, len] = [(); 2].map(|()| u16::from_be_bytes(input.array()));
            put(0, &(u64::from(start) % PARAMETERS.logical_blocks).to_le_bytes());
            put(16, &(1_u64 << 48).to_le_bytes());
            put(24, &u64::from(len).to_le_bytes());
        }
        _ => put(0, &input.array::<40>()),
    }
    entry
}
