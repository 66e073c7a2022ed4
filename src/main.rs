//! The `hostveil` command.

fn main() {}
