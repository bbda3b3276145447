//! What a manifest tells of a stream beside its archive, and fingerprints of that.
//!
//! An archive of format 2 does not hold the stream's configuration, nor does any hold what was listed: a limit that somebody changes in the
//! manifest, a consumer that is taken out of it, would be restored as if it had been so. So the manifest holds hashes of what was told when
//! the stream was captured, under the epoch's seed as those of messages are: XXH3-128 of JSON with its keys sorted.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// The field of a stream's notes that holds the fingerprints.
const OWN: &str = "told";
/// The field that is a list of consumers, each with a fingerprint of its own.
const CONSUMERS: &str = "consumers";

/// Fingerprints of a stream's notes, in hex.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Told {
    /// Of each field but these and the consumers.
    fields: BTreeMap<String, String>,
    /// Of each consumer as it was listed, by name.
    consumers: BTreeMap<String, String>,
}

impl Told {
    /// Of a stream's notes as they stand in a manifest.
    pub(super) fn of(notes: &Value, seed: u64) -> Self {
        let fields = notes.as_object().into_iter().flatten();
        let fields = fields.filter(|(name, _)| !matches!(name.as_str(), OWN | CONSUMERS));
        let consumers = notes[CONSUMERS].as_array().into_iter().flatten();
        Self {
            fields: fields.map(|(name, value)| (name.clone(), digest(value, seed))).collect(),
            consumers: consumers.map(|one| (name(one).to_owned(), digest(one, seed))).collect(),
        }
    }

    /// How these notes are not those that were written, in words.
    pub(super) fn differences(&self, notes: &Value, seed: u64) -> Vec<String> {
        let is = Self::of(notes, seed);
        let mut differences: Vec<String> = differing(&self.fields, &is.fields)
            .map(|field| match field.as_str() {
                "config" => "its configuration in the manifest is not the one that was captured".to_owned(),
                field => format!("what the manifest tells of it (`{field}`) is not what was captured"),
            })
            .collect();
        differences.extend(differing(&self.consumers, &is.consumers).map(|name| {
            let what = match (self.consumers.contains_key(name), is.consumers.contains_key(name)) {
                (true, true) => "is not told as it was captured",
                (true, false) => "was captured, and the manifest does not tell of it",
                (false, _) => "is told of in the manifest, and was not captured",
            };
            format!("consumer `{name}` {what}")
        }));
        differences
    }
}

/// Names under which two maps hold something else.
fn differing<'a>(
    was: &'a BTreeMap<String, String>,
    is: &'a BTreeMap<String, String>,
) -> impl Iterator<Item = &'a String> {
    let names: BTreeSet<&String> = was.keys().chain(is.keys()).collect();
    names.into_iter().filter(|name| was.get(*name) != is.get(*name))
}

fn name(consumer: &Value) -> &str {
    consumer["name"].as_str().unwrap_or_default()
}

fn digest(value: &Value, seed: u64) -> String {
    let mut text = Vec::new();
    canonical(value, &mut text);
    format!("{:032x}", xxh3_128_with_seed(&text, seed))
}

/// JSON without spaces, its keys sorted. Of numbers with a fraction only that they are there: readers of JSON do not agree on the last
/// bit, and no server tells anything that matters by one.
fn canonical(value: &Value, into: &mut Vec<u8>) {
    let list = |into: &mut Vec<u8>, ends: [u8; 2], each: &mut dyn Iterator<Item = (Option<&String>, &Value)>| {
        into.push(ends[0]);
        for (n, (key, value)) in each.enumerate() {
            if n > 0 {
                into.push(b',');
            }
            if let Some(key) = key {
                into.extend_from_slice(Value::from(key.as_str()).to_string().as_bytes());
                into.push(b':');
            }
            canonical(value, into);
        }
        into.push(ends[1]);
    };
    match value {
        Value::Object(fields) => {
            let sorted: BTreeMap<&String, &Value> = fields.iter().collect();
            list(into, *b"{}", &mut sorted.into_iter().map(|(key, value)| (Some(key), value)));
        }
        Value::Array(items) => list(into, *b"[]", &mut items.iter().map(|item| (None, item))),
        Value::Number(number) if number.is_f64() => into.push(b'~'),
        other => into.extend_from_slice(other.to_string().as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_order_of_keys_says_nothing_and_everything_else_does() {
        let text = |value: &Value| {
            let mut text = Vec::new();
            canonical(value, &mut text);
            String::from_utf8(text).unwrap_or_default()
        };
        let one: Value = serde_json::from_str(r#"{"b":[1,{"y":null,"x":"é\n"}],"a":-7,"c":0.5}"#).unwrap_or_default();
        let other: Value =
            serde_json::from_str(r#"{"c":0.25,"a":-7,"b":[1,{"x":"é\n","y":null}]}"#).unwrap_or_default();
        assert_eq!(text(&one), r#"{"a":-7,"b":[1,{"x":"é\n","y":null}],"c":~}"#);
        assert_eq!(text(&one), text(&other));
        let all = [
            json!(null),
            json!(0),
            json!("0"),
            json!(false),
            json!([]),
            json!({}),
            json!([[]]),
            json!([1, 2]),
            json!([12]),
            json!(["1", "2"]),
            json!(["1\",\"2"]),
            json!({"a": 1}),
            json!({"a": {"b": 1}}),
            json!({"a": 1, "b": 1}),
            json!(u64::MAX),
            json!(i64::MIN),
        ];
        let different: BTreeSet<String> = all.iter().map(|value| digest(value, 1)).collect();
        assert_eq!(different.len(), all.len());
        assert_ne!(digest(&one, 1), digest(&one, 2));
    }

    #[test]
    fn whatever_is_told_otherwise_is_found() {
        let notes = json!({
            "name": "S", "config": {"max_msgs": 5}, "absent": [],
            "consumers": [{"name": "a", "config": {"x": 1}}, {"name": "b"}],
        });
        let told = Told::of(&notes, 7);
        let mut with = notes.clone();
        with[OWN] = serde_json::to_value(&told).unwrap_or_default();
        assert_eq!(told.differences(&with, 7), Vec::<String>::new());
        type Change = fn(&mut Value);
        let changes: &[(Change, &str)] = &[
            (|notes| notes["config"]["max_msgs"] = json!(6), "its configuration in the manifest is not the one"),
            (|notes| notes["absent"] = json!(["a"]), "(`absent`) is not what was captured"),
            (|notes| notes["more"] = json!(1), "(`more`) is not what was captured"),
            (|notes| notes["consumers"][0]["config"]["x"] = json!(2), "consumer `a` is not told as it was captured"),
            (
                |notes| notes["consumers"] = json!([notes["consumers"][0]]),
                "consumer `b` was captured, and the manifest",
            ),
            (
                |notes| notes["consumers"][1]["name"] = json!("c"),
                "consumer `c` is told of in the manifest, and was not",
            ),
        ];
        for (change, words) in changes {
            let mut changed = with.clone();
            change(&mut changed);
            let found = told.differences(&changed, 7);
            assert!(found.iter().any(|difference| difference.contains(words)), "`{words}` is not in {found:?}");
        }
        // The order of consumers says nothing.
        let mut turned = with.clone();
        turned["consumers"] = json!([notes["consumers"][1], notes["consumers"][0]]);
        assert_eq!(told.differences(&turned, 7), Vec::<String>::new());
    }
}
