//! What is done to a volume that nobody has mounted: making, growing, checking and amending it.

pub(super) mod amend;
pub(super) mod check;
pub(super) mod format;
pub(super) mod grow;
