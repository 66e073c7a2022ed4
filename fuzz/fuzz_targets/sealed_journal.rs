//! libFuzzer's way into [`hostveil_fuzz::sealed_journal`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hostveil_fuzz::sealed_journal(data));
