//! Keys, and what a sealed block is bound to: from the volume key to an epoch's key, to a sealed block.

pub(super) mod epoch;
pub(super) mod keyring;
pub(super) mod salts;
pub(super) mod schedule;
#[cfg(test)]
mod vectors;
