//! libFuzzer's way into [`hostveil_fuzz::sealed_engine`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hostveil_fuzz::sealed_engine(data));
