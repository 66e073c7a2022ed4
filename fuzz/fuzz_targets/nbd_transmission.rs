//! libFuzzer's way into [`hostveil_fuzz::nbd_transmission`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hostveil_fuzz::nbd_transmission(data));
