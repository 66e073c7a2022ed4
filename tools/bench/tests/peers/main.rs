//! Tests against real peers: other NBD servers, NBD clients, and a browser that shows the report.
//!
//! `tools/test.sh` installs them and turns the feature `peer-tests` on. A missing program fails a test,
//! with the name of its package.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

mod browser;
mod clients;
