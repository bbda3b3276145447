//! What no server at hand writes: old types, pre-releases, marks of modules. Made byte by byte.

use super::*;

/// The one key of a file with this type byte and value.
fn one(version: u32, kind: u8, value: &[u8]) -> Result<Seen, RdbError> {
    let walked = read(&file(version, &[&[kind, 1, b'k'], value].concat()))?;
    let seen = walked.visitor.keys.into_values().next().expect("there is a key");
    assert_eq!(seen.raw, value);
    Ok(seen)
}

fn digest(kind: u8, value: &[u8]) -> Digest {
    one(12, kind, value).unwrap_or_else(|error| panic!("type {kind}: {error}")).digest
}

fn refused(kind: u8, value: &[u8]) -> String {
    match one(12, kind, value) {
        Err(RdbError::Corrupt { what, .. }) => what,
        other => panic!("type {kind}: {other:?}"),
    }
}

/// A listpack in a string, of integers up to 127 and short strings.
fn listpack(elements: &[&[u8]]) -> Vec<u8> {
    let mut body = vec![0, 0];
    for element in elements {
        match std::str::from_utf8(element).ok().and_then(|text| text.parse::<u8>().ok()) {
            Some(number @ 0..=127) => body.extend([number, 1]),
            _ => {
                body.push(0x80 | element.len() as u8);
                body.extend_from_slice(element);
                body.push(1 + element.len() as u8);
            }
        }
    }
    body.push(255);
    let total = body.len() as u32 + 4;
    let mut string = vec![0x80];
    string.extend(total.to_be_bytes());
    string.extend(total.to_le_bytes());
    string.extend(body);
    string
}

#[test]
fn scores_are_the_same_as_text_as_double_and_in_a_listpack() {
    for (text, number) in
        [("1.5", 1.5), ("-0", 0.0), ("-0", -0.0), ("1e+300", 1e300), ("0.10000000000000001", 0.1), ("7", 7.0)]
    {
        let as_text = [&[1, 1, b'm', text.len() as u8], text.as_bytes()].concat();
        let as_double = [&[1, 1, b'm'], &f64::to_le_bytes(number)[..]].concat();
        let packed = listpack(&[b"m", text.as_bytes()]);
        assert_eq!(digest(3, &as_text), digest(5, &as_double), "{text}");
        assert_eq!(digest(17, &packed), digest(5, &as_double), "{text}");
    }
    for (mark, number, text) in [(254, f64::INFINITY, "inf"), (255, f64::NEG_INFINITY, "-inf")] {
        let as_double = [&[1, 1, b'm'], &f64::to_le_bytes(number)[..]].concat();
        assert_eq!(digest(3, &[1, 1, b'm', mark]), digest(5, &as_double));
        assert_eq!(digest(17, &listpack(&[b"m", text.as_bytes()])), digest(5, &as_double));
    }
    refused(3, &[1, 1, b'm', 253]);
    refused(5, &[&[1, 1, b'm'], &f64::NAN.to_le_bytes()[..]].concat());
    refused(17, &listpack(&[b"m", b"nan"]));
    refused(17, &listpack(&[b"m", b"x"]));
    refused(17, &listpack(&[b"m"]));
}

#[test]
fn ttls_of_fields_are_the_same_in_every_form() {
    let base = 1000u64.to_le_bytes();
    let plain = digest(4, &[1, 1, b'f', 1, b'v']);
    // One field that never expires, and one that does at 1005.
    let table = [&base[..], &[2, 0, 1, b'f', 1, b'v', 6, 1, b'g', 1, b'w']].concat();
    let early_table = [2, 0, 1, b'f', 1, b'v', 0x43, 0xed, 1, b'g', 1, b'w'];
    assert_eq!(digest(24, &table), digest(22, &early_table));
    // Their order says nothing.
    let turned = [&base[..], &[2, 6, 1, b'g', 1, b'w', 0, 1, b'f', 1, b'v']].concat();
    assert_eq!(digest(24, &table), digest(24, &turned));
    let packed = listpack(&[b"f", b"v", b"0", b"g", b"w", b"1005"]);
    assert_eq!(digest(23, &packed), digest(24, &table));
    assert_eq!(digest(25, &[&base[..], &packed].concat()), digest(24, &table));
    assert_ne!(digest(23, &listpack(&[b"f", b"v", b"0", b"g", b"w", b"1006"])), digest(24, &table));
    // Without a TTL it is the hash that it would be without the type.
    assert_eq!(digest(24, &[&base[..], &[1, 0, 1, b'f', 1, b'v']].concat()), plain);
    assert_eq!(digest(23, &listpack(&[b"f", b"v", b"0"])), plain);
    refused(24, &[&u64::MAX.to_le_bytes()[..], &[1, 2, 1, b'f', 1, b'v']].concat());
    refused(23, &listpack(&[b"f", b"v", b"-1"]));
    refused(23, &listpack(&[b"f", b"v", b"soon"]));
    refused(23, &listpack(&[b"f", b"v"]));
}

#[test]
fn a_module_is_known_by_its_name_only() {
    // 9 characters of 6 bits, and a version of 10.
    let name = b"AAbb99-_x";
    let characters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let at = |c: &u8| characters.iter().position(|have| have == c).unwrap() as u64;
    let id = name.iter().fold(0, |id, c| id << 6 | at(c)) << 10 | 3;
    let value = |rest: &[u8]| [&[0x81], &id.to_be_bytes()[..], rest].concat();
    let marks = value(&[1, 5, 2, 0x40, 9, 3, 1, 2, 3, 4, 4, 1, 2, 3, 4, 5, 6, 7, 8, 5, 2, b'h', b'i', 5, 0, 0]);
    let seen = one(12, 7, &marks).unwrap();
    assert_eq!((seen.module.as_deref(), seen.class), (Some("AAbb99-_x"), Some(Class::Module)));
    assert_eq!(digest(7, &value(&[0])), seen.digest);
    assert!(refused(7, &value(&[6, 0])).contains("mark 6"));
    let aux = [&[247], &value(&[2, 1, 5, 1, b'x', 0])[..]].concat();
    assert_eq!(read(&file(12, &aux)).unwrap().visitor.modules, ["AAbb99-_x"]);
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    assert!(refused(6, &[0]).contains("pre-release"));
    assert!(refused(8, &[0]).contains("type 8"));
    assert!(refused(26, &[0]).contains("type 26"));
    assert!(refused(243, &[0]).contains("type 243"));
    assert!(refused(246, &[0]).contains("opcode 246"));
    assert!(refused(18, &[1, 3, 0]).contains("form 3"));
    assert!(refused(0, &[0xc4]).contains("form 4"));
    assert!(refused(0, &[0x82]).contains("0x82"));
    assert!(refused(1, &[0xc0, 1]).contains("length"));
}

#[test]
fn expiries_are_of_the_next_key_only() {
    let body = [
        &[253, 1, 0, 0, 0, 249, 7, 0, 1, b'a', 0][..],
        &[0, 1, b'b', 0],
        &[252],
        &5u64.to_le_bytes(),
        &[248, 0x40, 200, 0, 1, b'c', 0],
        &[252],
        &(-5i64).to_le_bytes(),
        &[0, 1, b'd', 0],
        &[254, 3, 0, 1, b'e', 0],
    ]
    .concat();
    let keys = read(&file(12, &body)).unwrap().visitor.keys;
    let expiry = |db: u64, key: &[u8]| keys[&(db, key.to_vec())].expiry;
    assert_eq!([expiry(0, b"a"), expiry(0, b"b"), expiry(0, b"c")], [Some(1000), None, Some(5)]);
    assert_eq!([expiry(0, b"d"), expiry(3, b"e")], [Some(1), None]);
}

#[test]
fn auxiliary_fields_are_cut_short() {
    let body =
        [&[250, 1, b'n', 0x80], &70_000u32.to_be_bytes()[..], &[b'v'; 70_000], &[250, 1, b'm', 0xc0, 5]].concat();
    let aux = read(&file(12, &body)).unwrap().visitor.aux;
    assert_eq!(aux[0], (b"n".to_vec(), vec![b'v'; 64 * 1024]));
    assert_eq!(aux[1], (b"m".to_vec(), b"5".to_vec()));
}

#[test]
fn old_files_have_no_checksum() {
    let without = |version: u32| {
        let mut file = file(version, &[0, 1, b'k', 0]);
        file.truncate(file.len() - 8);
        file
    };
    let walked = read(&without(4)).unwrap();
    assert_eq!((walked.version, walked.checksum, walked.visitor.keys.len()), (4, false, 1));
    assert!(matches!(read(&without(5)), Err(RdbError::Truncated { .. })));
}
