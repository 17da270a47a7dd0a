//! Any bytes as the data of a client-subnet option (RFC 7871): what is taken is exact.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use nearcast_gslb_dns::message::{OptRecord, Query, Writer};

fuzz_target!(|data: &[u8]| {
    let Ok(length) = u16::try_from(data.len()) else {
        return;
    };
    let mut message = vec![
        0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 41, 4, 208, 0, 0, 0, 0,
    ];
    let Some(rest) = length.checked_add(4) else {
        return;
    };
    message.extend(rest.to_be_bytes());
    message.extend([0, 8]);
    message.extend(length.to_be_bytes());
    message.extend(data);
    let query = Query::parse(&message).expect("a query");
    let Some(subnet) = query.edns.expect("OPT is there").subnet else {
        assert!(query.is_malformed, "what is not taken is a format error");
        return;
    };
    let whole = match subnet.family {
        0 => 0,
        1 => 32,
        2 => 128,
        other => panic!("family {other}"),
    };
    assert!(subnet.source_prefix <= whole);
    let host_bits = match subnet.address {
        IpAddr::V4(a) => u128::from(
            u32::from(a)
                .checked_shl(subnet.source_prefix.into())
                .unwrap_or(0),
        ),
        IpAddr::V6(a) => u128::from(a)
            .checked_shl(subnet.source_prefix.into())
            .unwrap_or(0),
    };
    assert_eq!(host_bits, 0, "no stray bits");
    // Given back, it is what was sent, but for the scope.
    let mut out = Vec::new();
    let mut writer = Writer::new(&mut out, 1, 0x8000, None);
    let opt = OptRecord {
        subnet: Some((subnet, 9)),
        ..OptRecord::default()
    };
    let before = writer.len();
    writer.opt(&opt);
    assert_eq!(writer.len() - before, opt.len(), "it is as long as it says");
    let returned = &out[out.len() - data.len()..];
    assert_eq!((data[3], returned[3]), (0, 9));
    assert_eq!((&returned[..3], &returned[4..]), (&data[..3], &data[4..]));
});
