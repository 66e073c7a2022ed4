//! libFuzzer's way into [`hostveil_fuzz::nbd_handshake`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hostveil_fuzz::nbd_handshake(data));
