//! The header and its key slots: from a secret to the volume key, and who can open a volume.

pub(super) mod backup;
pub(super) mod describe;
pub(super) mod fields;
#[cfg(test)]
pub(super) mod fixtures;
pub(super) mod slot;
pub(super) mod slots;
pub(super) mod unlock;
