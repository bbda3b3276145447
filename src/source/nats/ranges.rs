//! A set of sequences, kept as ranges: of a stream without holes it is one pair of numbers, whatever its length.
//!
//! Inserting in ascending order is the fast case; any other order costs a search, never a move of everything behind.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, SeqAccess, Visitor},
};

/// A set of `u64`. Ranges are disjoint and do not touch, so equal sets are equal values. In JSON: `[[from,to],…]`, both
/// ends inclusive, ascending.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Ranges {
    /// All ranges but the last, by their first number.
    before: BTreeMap<u64, u64>,
    /// The last range.
    last: Option<(u64, u64)>,
}

impl Ranges {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Everything up to and with `last`.
    pub fn all_to(last: u64) -> Self {
        Self { before: BTreeMap::new(), last: Some((0, last)) }
    }

    /// The first number from `from` to `to` that is in neither this nor `other`.
    pub fn first_gap(&self, from: u64, to: u64, other: &Self) -> Option<u64> {
        let all = Self { before: BTreeMap::new(), last: (from <= to).then_some((from, to)) };
        all.without(self).without(other).first(1).first().copied()
    }

    /// Puts `number` in; `false` where it is already.
    pub fn insert(&mut self, number: u64) -> bool {
        match &mut self.last {
            // Above the last range: it grows, or another one begins.
            Some((_, to)) if number > *to => {
                if number - *to == 1 {
                    *to = number;
                } else if let Some((from, to)) = self.last.replace((number, number)) {
                    self.before.insert(from, to);
                }
                true
            }
            Some((from, _)) if number >= *from => false,
            Some(_) => self.insert_before(number),
            None => {
                self.last = Some((number, number));
                true
            }
        }
    }

    /// Below the last range.
    fn insert_before(&mut self, number: u64) -> bool {
        let below = self.before.range(..=number).next_back().map(|(from, to)| (*from, *to));
        if below.is_some_and(|(_, to)| number <= to) {
            return false;
        }
        let from = match below {
            Some((from, to)) if to + 1 == number => from,
            _ => number,
        };
        // There is a range above it, so it is not the largest number of all.
        let above = number + 1;
        if let Some(to) = self.before.remove(&above) {
            self.before.insert(from, to);
        } else if let Some((_, to)) = self.last.filter(|(first, _)| *first == above) {
            self.before.remove(&from);
            self.last = Some((from, to));
        } else {
            self.before.insert(from, number);
        }
        true
    }

    /// Is it in?
    pub fn contains(&self, number: u64) -> bool {
        match self.last {
            Some((from, to)) if number >= from => number <= to,
            _ => self.before.range(..=number).next_back().is_some_and(|(_, to)| number <= *to),
        }
    }

    /// How many numbers; of all 2^64 that there are, one less.
    pub fn len(&self) -> u64 {
        self.iter().fold(0, |len: u64, (from, to)| len.saturating_add((to - from).saturating_add(1)))
    }

    /// How many ranges, which is what it takes memory by.
    pub fn parts(&self) -> usize {
        self.before.len() + usize::from(self.last.is_some())
    }

    /// Is nothing in?
    pub fn is_empty(&self) -> bool {
        self.last.is_none()
    }

    /// The ranges, ascending, both ends inclusive.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.before.iter().map(|(from, to)| (*from, *to)).chain(self.last)
    }

    /// The first `most` numbers.
    pub fn first(&self, most: usize) -> Vec<u64> {
        self.iter().flat_map(|(from, to)| from..=to).take(most).collect()
    }

    /// What is in here and not in `other`.
    pub fn without(&self, other: &Self) -> Self {
        let mut left = Self::new();
        let mut others = other.iter().peekable();
        for (mut from, to) in self.iter() {
            loop {
                while others.next_if(|(_, end)| *end < from).is_some() {}
                let Some((begin, end)) = others.peek().copied().filter(|(begin, _)| *begin <= to) else {
                    left.push(from, to);
                    break;
                };
                if begin > from {
                    left.push(from, begin - 1);
                }
                if end >= to {
                    break;
                }
                from = end + 1;
            }
        }
        left
    }

    /// Puts a range behind all others, which it does not touch.
    fn push(&mut self, from: u64, to: u64) {
        if let Some((from, to)) = self.last.replace((from, to)) {
            self.before.insert(from, to);
        }
    }
}

impl fmt::Debug for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl FromIterator<u64> for Ranges {
    fn from_iter<I: IntoIterator<Item = u64>>(numbers: I) -> Self {
        let mut ranges = Self::new();
        for number in numbers {
            ranges.insert(number);
        }
        ranges
    }
}

impl Serialize for Ranges {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Ranges {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Ranges;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("ranges, ascending and apart")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut pairs: A) -> Result<Ranges, A::Error> {
                let mut ranges = Ranges::new();
                while let Some((from, to)) = pairs.next_element::<(u64, u64)>()? {
                    let apart = ranges.last.is_none_or(|(_, last)| from > last && from - last > 1);
                    if from > to || !apart {
                        return Err(A::Error::custom(format!("the range from {from} to {to} is out of order")));
                    }
                    ranges.push(from, to);
                }
                Ok(ranges)
            }
        }
        from.deserialize_seq(Read)
    }
}

/// Reads a JSON list of numbers, or null, into a set, without keeping the list.
///
/// # Errors
/// Something else than numbers.
pub fn of_numbers<'de, D: Deserializer<'de>>(from: D) -> Result<Ranges, D::Error> {
    struct Numbers;
    impl<'de> Visitor<'de> for Numbers {
        type Value = Ranges;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of sequences")
        }
        fn visit_unit<E>(self) -> Result<Ranges, E> {
            Ok(Ranges::new())
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<Ranges, A::Error> {
            let mut ranges = Ranges::new();
            while let Some(number) = numbers.next_element()? {
                ranges.insert(number);
            }
            Ok(ranges)
        }
    }
    from.deserialize_any(Numbers)
}

/// A set as one short text: for each range how far behind the one before it begins, and, after `+`, how many more there are:
/// `3+2 5` is 3, 4, 5 and 10.
pub mod text {
    use std::fmt::Write;

    use super::{Deserialize, Deserializer, Error, Ranges, Serializer};

    /// Writes the text.
    ///
    /// # Errors
    /// What the serializer says.
    pub fn serialize<S: Serializer>(ranges: &Ranges, to: S) -> Result<S::Ok, S::Error> {
        let (mut text, mut end) = (String::new(), 0);
        for (from, last) in ranges.iter() {
            let space = if text.is_empty() { "" } else { " " };
            // Writing to a string does not fail.
            let _ = write!(text, "{space}{}", from - end);
            if last > from {
                let _ = write!(text, "+{}", last - from);
            }
            end = last;
        }
        to.serialize_str(&text)
    }

    /// Reads it.
    ///
    /// # Errors
    /// Another text.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Ranges, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        parse(&text).ok_or_else(|| D::Error::custom("not a set of sequences"))
    }

    fn parse(text: &str) -> Option<Ranges> {
        let mut ranges = Ranges::new();
        let mut end: u64 = 0;
        for range in text.split_ascii_whitespace() {
            let (behind, more) = range.split_once('+').unwrap_or((range, "0"));
            let behind: u64 = behind.parse().ok()?;
            // Ranges do not touch, or they would be one.
            if behind < 2 && !ranges.is_empty() {
                return None;
            }
            let from = end.checked_add(behind)?;
            let last = from.checked_add(more.parse().ok()?)?;
            ranges.push(from, last);
            end = last;
        }
        Some(ranges)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Numbers that lie close together, also at both ends of what there is.
    fn numbers() -> impl Strategy<Value = Vec<u64>> {
        let number = prop_oneof![8 => 0..60u64, 1 => 1000..1010u64, 1 => u64::MAX - 5..=u64::MAX];
        prop::collection::vec(number, 0..120)
    }

    /// Numbers as one range would begin where another ends, were they not joined.
    fn apart(ranges: &Ranges) -> bool {
        let all: Vec<_> = ranges.iter().collect();
        all.iter().all(|(from, to)| from <= to) && all.windows(2).all(|two| two[1].0 - two[0].1 > 1)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn it_is_the_set_of_what_was_put_in(numbers in numbers(), others in numbers()) {
            let (mut ranges, mut set) = (Ranges::new(), BTreeSet::new());
            for number in &numbers {
                prop_assert_eq!(ranges.insert(*number), set.insert(*number));
                prop_assert!(apart(&ranges));
            }
            prop_assert_eq!(ranges.len(), set.len() as u64);
            prop_assert_eq!(ranges.is_empty(), set.is_empty());
            prop_assert_eq!(ranges.first(usize::MAX), set.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(ranges.first(3), set.iter().copied().take(3).collect::<Vec<_>>());
            for number in (0..70).chain(995..1015).chain(u64::MAX - 10..=u64::MAX) {
                prop_assert_eq!(ranges.contains(number), set.contains(&number), "{}", number);
            }
            // The order says nothing.
            prop_assert_eq!(&numbers.iter().rev().copied().collect::<Ranges>(), &ranges);
            let other: Ranges = others.iter().copied().collect();
            let others: BTreeSet<u64> = others.into_iter().collect();
            let gap = (5..=50).find(|number| !set.contains(number) && !others.contains(number));
            let other_set: Ranges = others.iter().copied().collect();
            prop_assert_eq!(ranges.first_gap(5, 50, &other_set), gap);
            let left = ranges.without(&other);
            prop_assert!(apart(&left));
            prop_assert_eq!(left.first(usize::MAX), set.difference(&others).copied().collect::<Vec<_>>());
            let json = serde_json::to_string(&ranges).unwrap();
            prop_assert_eq!(serde_json::from_str::<Ranges>(&json).unwrap(), ranges.clone());
            let json = serde_json::to_string(&AsText(ranges.clone())).unwrap();
            prop_assert_eq!(serde_json::from_str::<AsText>(&json).unwrap().0, ranges.clone());
            prop_assert_eq!(serde_json::from_str::<AsNumbers>(&serde_json::to_string(&numbers).unwrap()).unwrap().0, ranges);
        }
    }

    #[derive(Serialize, Deserialize)]
    struct AsText(#[serde(with = "text")] Ranges);

    #[derive(Deserialize)]
    struct AsNumbers(#[serde(deserialize_with = "of_numbers")] Ranges);

    #[test]
    fn as_text_it_is_short() {
        let ranges: Ranges = [3, 4, 5, 10, u64::MAX].into_iter().collect();
        let json = serde_json::to_string(&AsText(ranges.clone())).unwrap();
        assert_eq!(json, "\"3+2 5 18446744073709551605\"");
        assert!(serde_json::from_str::<AsText>("\"\"").unwrap().0.is_empty());
        assert!(serde_json::from_str::<AsNumbers>("null").unwrap().0.is_empty());
        for lie in ["1 1", "1+2 0", "x", "1+", "5 18446744073709551615", "-1", "1+-1"] {
            assert!(serde_json::from_str::<AsText>(&format!("\"{lie}\"")).is_err(), "{lie}");
        }
    }

    #[test]
    fn in_json_it_is_pairs() {
        let ranges: Ranges = [1, 2, 3, 7, u64::MAX].into_iter().collect();
        let json = "[[1,3],[7,7],[18446744073709551615,18446744073709551615]]";
        assert_eq!(serde_json::to_string(&ranges).unwrap(), json);
        assert_eq!(serde_json::from_str::<Ranges>("[]").unwrap(), Ranges::new());
        let all: Ranges = serde_json::from_str("[[0,18446744073709551615]]").unwrap();
        assert_eq!(all.len(), u64::MAX);
        for lie in ["[[2,1]]", "[[1,2],[3,4]]", "[[5,6],[1,2]]", "[[1,5],[3,9]]", "[[1]]", "[[1,2,3]]", "[[-1,2]]", "7"]
        {
            assert!(serde_json::from_str::<Ranges>(lie).is_err(), "{lie}");
        }
    }
}
