//! libFuzzer's way into [`hostveil_fuzz::config`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hostveil_fuzz::config(data));
