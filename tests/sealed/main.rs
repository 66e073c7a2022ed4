//! The sealed engine under crashes, faults and attacks, on a simulated disk.
#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by them

mod attacks;
mod disk;
mod faults;
mod history;
mod hook;
mod machine;
#[cfg(feature = "mutants")]
mod mutants;
mod random;
mod simulate;
