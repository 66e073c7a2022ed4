//! The command line as users meet it, one file a behaviour: messages, exit codes, and that a refusal
//! changes nothing. Needs no peer.
#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by them

mod accept_restore;
mod anchors;
mod arguments;
mod busy;
mod config;
mod damaged_header;
mod demo;
mod harness;
mod headers;
mod inspect;
mod inspect_truncated;
mod interrupt;
mod key_files;
mod keys;
mod limits;
mod metrics;
mod overwrite;
mod pins;
mod prompt;
mod ready;
mod sandbox;
mod sealed_check;
mod sealed_format;
mod sealed_grow;
mod sealed_header_backup;
mod sealed_inspect;
mod sealed_keys;
mod sealed_serve;
mod sealed_truncated;
mod service_manager;
#[path = "../support/mod.rs"]
mod support;
mod wrong_device;
mod wrong_key;
