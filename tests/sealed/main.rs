//! The sealed engine under crashes, faults and attacks, on a simulated disk.
#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by them

#[cfg(feature = "schedules")]
mod account;
mod attacks;
mod disk;
mod faults;
mod history;
mod hook;
mod machine;
#[cfg(feature = "mutants")]
mod mutants;
#[cfg(feature = "schedules")]
mod race;
#[cfg(feature = "schedules")]
mod races;
mod random;
mod seeds;
mod simulate;
#[cfg(feature = "schedules")]
mod tasks;
