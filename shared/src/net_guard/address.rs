//! Which addresses are public unicast, decided on their bits and never on their spelling.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether a packet to this address leaves for the public Internet. Addresses that carry another one
/// (mapped, translated, tunnelled) are as public as what they carry.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// The special ranges of IPv4, each with its prefix length.
const SPECIAL_V4: [([u8; 4], u32); 16] = [
    ([0, 0, 0, 0], 8),        // this network
    ([10, 0, 0, 0], 8),       // private
    ([100, 64, 0, 0], 10),    // carrier-grade NAT, and some clouds' metadata
    ([127, 0, 0, 0], 8),      // loopback
    ([168, 63, 129, 16], 32), // a cloud's host agent on a public number
    ([169, 254, 0, 0], 16),   // link-local, and most clouds' metadata
    ([172, 16, 0, 0], 12),    // private
    ([192, 0, 0, 0], 24),     // protocol assignments
    ([192, 0, 2, 0], 24),     // documentation
    ([192, 88, 99, 0], 24),   // 6to4 relays, withdrawn
    ([192, 168, 0, 0], 16),   // private
    ([198, 18, 0, 0], 15),    // benchmarks
    ([198, 51, 100, 0], 24),  // documentation
    ([203, 0, 113, 0], 24),   // documentation
    ([224, 0, 0, 0], 4),      // multicast
    ([240, 0, 0, 0], 4),      // reserved, and broadcast
];

fn is_public_v4(address: Ipv4Addr) -> bool {
    let bits = address.to_bits();
    !SPECIAL_V4.iter().any(|(network, length)| {
        let shift = 32 - length;
        bits >> shift == u32::from_be_bytes(*network) >> shift
    })
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let s = address.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match s {
        // IPv4-mapped, and the well-known NAT64 prefix.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            is_public_v4(v4(high, low))
        }
        // Teredo: the server, and the client with its bits turned over.
        [0x2001, 0, server_high, server_low, _, _, high, low] => {
            is_public_v4(v4(server_high, server_low)) && is_public_v4(v4(!high, !low))
        }
        // 6to4.
        [0x2002, high, low, ..] => is_public_v4(v4(high, low)) && !carries_private_isatap(s),
        // The rest of the protocol assignments; documentation.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // Global unicast. Everything outside is loopback, local, multicast, documentation or not given out.
        [0x2000..=0x3fff, ..] => !carries_private_isatap(s),
        _ => false,
    }
}

/// An interface identifier of the form `[02]00:5efe:<IPv4>` names the end of a tunnel.
fn carries_private_isatap(segments: [u16; 8]) -> bool {
    match segments {
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => {
            !is_public_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
        }
        _ => false,
    }
}
