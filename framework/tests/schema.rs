//! States outlive the code that wrote them: schemas, evolution, display.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use perennial::Data;
use perennial::core::id::ActorId;
use perennial::data;
use perennial::schema::{DEPTH_MAX, Schema, SchemaError, Shape, Type};
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::json;

#[data]
struct Everything {
    small: (i8, u8, i16, u16),
    wide: (i32, u32, i64, u64),
    widest: (i128, u128),
    sizes: (usize, isize),
    float: (f32, f64),
    flag: bool,
    letter: char,
    text: String,
    raw: Bytes,
    maybe: Option<Option<u32>>,
    list: Vec<Entry>,
    queue: VecDeque<()>,
    set: BTreeSet<String>,
    hashed: HashSet<u16>,
    by_number: BTreeMap<u32, Entry>,
    by_flag: HashMap<bool, u8>,
    by_pair: BTreeMap<(u8, char), u8>,
    array: [u16; 3],
    time: Duration,
    tree: Tree,
    boxed: Box<str>,
    #[serde(skip)]
    not_stored: u32,
    r#type: Marker,
}

#[data]
#[derive(Default)]
struct Marker;

#[data]
#[serde(rename_all = "SCREAMING-KEBAB-CASE", rename_all_fields = "camelCase")]
enum Entry {
    NothingAtAll,
    One(Id),
    Two(u8, String),
    #[serde(rename = "many", rename_all = "PascalCase")]
    Many {
        first_field: u32,
        second: Option<String>,
    },
    Camel {
        first_field: u32,
    },
}

#[data]
struct Id(u64);

#[data]
#[derive(Default)]
struct Tree {
    value: i32,
    left: Option<Box<Tree>>,
    right: Option<Box<Tree>>,
}

/// Numbers that serde_json can show.
fn entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        Just(Entry::NothingAtAll),
        any::<u64>().prop_map(|n| Entry::One(Id(n))),
        any::<(u8, String)>().prop_map(|(a, b)| Entry::Two(a, b)),
        any::<(u32, Option<String>)>().prop_map(|(first_field, second)| Entry::Many { first_field, second }),
        any::<u32>().prop_map(|first_field| Entry::Camel { first_field }),
    ]
}

fn tree() -> impl Strategy<Value = Tree> {
    let leaf = any::<i32>().prop_map(|value| Tree { value, ..Tree::default() });
    leaf.prop_recursive(6, 32, 2, |inner| {
        (any::<i32>(), proptest::option::of(inner.clone()), proptest::option::of(inner)).prop_map(
            |(value, left, right)| Tree { value, left: left.map(Box::new), right: right.map(Box::new) },
        )
    })
}

fn everything() -> impl Strategy<Value = Everything> {
    let numbers = (
        any::<(i8, u8, i16, u16)>(),
        any::<(i32, u32, i64, u64)>(),
        any::<(i64, u64)>().prop_map(|(a, b)| (i128::from(a), u128::from(b))),
        any::<(usize, isize)>(),
        (-1e9f32..1e9, -1e9f64..1e9),
        any::<(bool, char, String, Vec<u8>, Box<str>)>(),
    );
    let groups = (
        any::<Option<Option<u32>>>(),
        proptest::collection::vec(entry(), 0..4),
        0..5usize,
        any::<BTreeSet<String>>(),
        any::<HashSet<u16>>(),
        proptest::collection::btree_map(any::<u32>(), entry(), 0..4),
        any::<HashMap<bool, u8>>(),
        (any::<[u16; 3]>(), any::<Duration>(), tree()),
    );
    (numbers, groups).prop_map(|(numbers, groups)| {
        let (small, wide, widest, sizes, float, (flag, letter, text, raw, boxed)) = numbers;
        let (maybe, list, units, set, hashed, by_number, by_flag, (array, time, tree)) = groups;
        Everything {
            small,
            wide,
            widest,
            sizes,
            float,
            flag,
            letter,
            text,
            raw: raw.into(),
            maybe,
            list,
            queue: (0..units).map(|_| ()).collect(),
            set,
            hashed,
            by_number,
            by_flag,
            by_pair: BTreeMap::new(),
            array,
            time,
            tree,
            boxed,
            not_stored: 0,
            r#type: Marker,
        }
    })
}

fn written<T: Data>(value: &T) -> (Schema, Vec<u8>) {
    (Schema::of::<T>(), postcard::to_stdvec(value).unwrap())
}

/// Writes as one type, reads as the other.
fn evolve<Old: Data, New: DeserializeOwned>(old: &Old) -> Result<New, SchemaError> {
    let (schema, bytes) = written(old);
    let stored = postcard::to_stdvec(&schema).unwrap();
    postcard::from_bytes::<Schema>(&stored).unwrap().read(&bytes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_value_reads_back_and_shows_as_serde_shows_it(value in everything()) {
        let (schema, bytes) = written(&value);
        prop_assert_eq!(&postcard::from_bytes::<Everything>(&bytes).unwrap(), &value);
        prop_assert_eq!(&schema.read::<Everything>(&bytes).unwrap(), &value);
        prop_assert_eq!(schema.to_json(&bytes).unwrap(), serde_json::to_value(value).unwrap());
    }

    #[test]
    fn damaged_bytes_are_an_error_and_nothing_worse(
        value in everything(),
        cut in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        bits in 1u8..,
    ) {
        let (schema, mut bytes) = written(&value);
        let short = cut.index(bytes.len());
        prop_assert!(schema.read::<Everything>(&bytes[..short]).is_err());
        prop_assert!(schema.to_json(&bytes[..short]).is_err());
        let at = at.index(bytes.len());
        bytes[at] ^= bits;
        let read = schema.read::<Everything>(&bytes).is_ok();
        let shown = schema.to_json(&bytes).is_ok();
        prop_assert!(shown || !read, "what can be read can be shown");
    }

    #[test]
    fn noise_is_never_a_panic(bytes in any::<Vec<u8>>()) {
        let schema = Schema::of::<Everything>();
        let _ = schema.read::<Everything>(&bytes);
        let _ = schema.to_json(&bytes);
    }
}

#[test]
fn names_are_changed_as_serde_changes_them() {
    macro_rules! cased {
        ($($rule:literal)*) => {$({
            #[data]
            #[serde(rename_all = $rule, rename_all_fields = $rule)]
            enum Cased {
                FirstOne { second_field_x: u8 },
                HTTPThing,
            }
            for value in [Cased::FirstOne { second_field_x: 1 }, Cased::HTTPThing] {
                let (schema, bytes) = written(&value);
                assert_eq!(schema.to_json(&bytes).unwrap(), serde_json::to_value(&value).unwrap());
                assert_eq!(schema.read::<Cased>(&bytes).unwrap(), value);
            }
        })*};
    }
    cased! {
        "lowercase" "UPPERCASE" "PascalCase" "camelCase" "snake_case" "SCREAMING_SNAKE_CASE" "kebab-case"
        "SCREAMING-KEBAB-CASE"
    }
}

#[test]
fn maps_with_structured_keys_and_wide_integers_are_shown() {
    let (schema, bytes) = written(&BTreeMap::from([((1u8, 'x'), 2u8)]));
    assert_eq!(schema.to_json(&bytes).unwrap(), json!([[[1, "x"], 2]]));
    let (schema, bytes) = written(&(u128::MAX, i128::MIN, f64::NAN));
    let shown = schema.to_json(&bytes).unwrap();
    assert_eq!(shown, json!([u128::MAX.to_string(), i128::MIN.to_string(), null]));
}

#[test]
fn actor_ids_are_stored_and_shown_as_text() {
    let id = ActorId::new("Cart", "a").unwrap();
    let (schema, bytes) = written(&vec![id.clone()]);
    assert_eq!(schema.read::<Vec<ActorId>>(&bytes).unwrap(), [id]);
    assert_eq!(schema.to_json(&bytes).unwrap(), json!(["Cart/a"]));
}

mod v1 {
    use super::*;

    #[data]
    pub(super) struct Cart {
        pub(super) owner: String,
        pub(super) lines: Vec<Line>,
        pub(super) dropped: Entry,
        pub(super) count: u8,
        pub(super) weight: f32,
        pub(super) delta: i32,
        pub(super) note: String,
        pub(super) status: Status,
        pub(super) price: u64,
        pub(super) raw: Bytes,
        pub(super) unit: Flag,
    }
    #[data]
    pub(super) struct Line {
        pub(super) sku: String,
        pub(super) qty: u32,
        pub(super) cents: u32,
    }
    #[data]
    pub(super) enum Status {
        Open,
        Paid(u32),
        Sent { by: String },
    }
    #[data]
    #[derive(Default)]
    pub(super) struct Flag;
}

mod v2 {
    use super::*;

    /// Reordered, widened, wrapped, renamed, with and without fields.
    #[data]
    #[derive(Default)]
    pub(super) struct Cart {
        pub(super) unit: Flag,
        pub(super) raw: Vec<u8>,
        pub(super) status: Status,
        #[serde(alias = "note")]
        pub(super) remark: Option<String>,
        pub(super) delta: i64,
        pub(super) weight: f64,
        pub(super) count: u64,
        pub(super) lines: VecDeque<Line>,
        pub(super) owner: Owner,
        pub(super) price: Price,
        #[serde(default)]
        pub(super) added: BTreeMap<String, u32>,
    }
    #[data]
    #[derive(Default)]
    pub(super) struct Owner(pub(super) String);
    #[data]
    #[derive(Default)]
    pub(super) struct Price(pub(super) u128);
    #[data]
    #[derive(Default)]
    pub(super) struct Line {
        pub(super) cents: u32,
        pub(super) qty: u32,
        pub(super) sku: String,
    }
    #[data]
    #[derive(Default)]
    pub(super) enum Status {
        Sent {
            by: Option<String>,
            #[serde(default)]
            at: u64,
        },
        Paid(u64),
        Lost,
        #[default]
        Open,
    }
    #[data]
    #[derive(Default)]
    pub(super) struct Flag {
        #[serde(default)]
        pub(super) set: bool,
    }
}

fn old_cart(status: v1::Status) -> v1::Cart {
    v1::Cart {
        owner: "ann".into(),
        lines: vec![v1::Line { sku: "tea".into(), qty: 2, cents: 250 }],
        dropped: Entry::Many { first_field: 1, second: None },
        count: 255,
        weight: 1.5,
        delta: -7,
        note: "gift".into(),
        status,
        price: 9,
        raw: Bytes::from_static(b"raw"),
        unit: v1::Flag,
    }
}

#[test]
fn a_state_is_read_by_field_name() {
    for (old, new) in [
        (v1::Status::Open, v2::Status::Open),
        (v1::Status::Paid(3), v2::Status::Paid(3)),
        (v1::Status::Sent { by: "post".into() }, v2::Status::Sent { by: Some("post".into()), at: 0 }),
    ] {
        let expected = v2::Cart {
            unit: v2::Flag { set: false },
            raw: b"raw".to_vec(),
            status: new,
            remark: Some("gift".into()),
            delta: -7,
            weight: 1.5,
            count: 255,
            lines: [v2::Line { cents: 250, qty: 2, sku: "tea".into() }].into(),
            owner: v2::Owner("ann".into()),
            price: v2::Price(9),
            added: BTreeMap::new(),
        };
        assert_eq!(evolve::<_, v2::Cart>(&old_cart(old)).unwrap(), expected);
    }
}

#[test]
fn what_does_not_fit_is_named_with_its_place() {
    #[data]
    struct Narrow {
        count: i8,
    }
    #[data]
    struct Needs {
        owner: String,
        missing: u32,
    }
    #[data]
    struct Nested {
        lines: Vec<NestedLine>,
    }
    #[data]
    struct NestedLine {
        qty: String,
    }
    #[data]
    struct Rounded {
        price: f64,
    }
    #[data]
    struct Fewer {
        status: FewerStatus,
    }
    #[data]
    enum FewerStatus {
        Open,
    }
    let old = old_cart(v1::Status::Paid(3));
    let text = |error: SchemaError| error.to_string();
    assert_eq!(
        evolve::<_, Narrow>(&old).map_err(text),
        Err("count: invalid value: integer `255`, expected i8".into())
    );
    assert_eq!(evolve::<_, Needs>(&old).map_err(text), Err("missing field `missing`".into()));
    assert_eq!(
        evolve::<_, Nested>(&old).map_err(text),
        Err("lines: [0]: qty: invalid type: integer `2`, expected a string".into())
    );
    assert_eq!(
        evolve::<_, Rounded>(&old).map_err(text),
        Err("price: an f64 is read from an f32, an f64 or an integer of up to 32 bits".into())
    );
    assert_eq!(
        evolve::<_, Fewer>(&old).map_err(text),
        Err("status: unknown variant `Paid`, expected `Open`".into())
    );
    assert_eq!(evolve::<_, [u8; 2]>(&[1u8, 2, 3]), Err(SchemaError::ElementsLeft(1)));
    assert_eq!(evolve::<_, (u8,)>(&(1u8, 2u8)), Err(SchemaError::ElementsLeft(1)));
    assert!(evolve::<_, f32>(&1.0f64).is_err());
    assert!(evolve::<_, u32>(&Some(1u32)).is_err());
    let (schema, mut bytes) = written(&1u8);
    bytes.push(0);
    assert_eq!(schema.read::<u8>(&bytes), Err(SchemaError::BytesLeft(1)));
}

#[test]
fn a_default_does_not_disturb_reading_by_position() {
    let cart = v2::Cart { count: 3, added: [("a".to_owned(), 1)].into(), ..v2::Cart::default() };
    let bytes = postcard::to_stdvec(&cart).unwrap();
    assert_eq!(postcard::from_bytes::<v2::Cart>(&bytes).unwrap(), cart);
}

/// Written as `Cart` in its day; only the name of the Rust type has changed since.
#[data]
struct CartV1 {
    total: u32,
}

#[data(upgrade_from = CartV1)]
struct CartV2 {
    totals: Vec<u32>,
}

impl From<CartV1> for CartV2 {
    fn from(old: CartV1) -> Self {
        Self { totals: vec![old.total] }
    }
}

#[data(upgrade_from = CartV2)]
#[derive(Default)]
struct CartV3 {
    totals: BTreeMap<String, u32>,
    #[serde(default)]
    note: String,
}

impl From<CartV2> for CartV3 {
    fn from(old: CartV2) -> Self {
        let totals = old.totals.iter().enumerate().map(|(n, total)| (n.to_string(), *total)).collect();
        Self { totals, note: "upgraded".into() }
    }
}

#[test]
fn a_state_is_upgraded_through_every_version_in_between() {
    #[data]
    struct Cart {
        total: u32,
    }
    #[data]
    struct WithoutNote {
        totals: BTreeMap<String, u32>,
    }
    let upgraded = CartV3 { totals: [("0".to_owned(), 5)].into(), note: "upgraded".into() };
    let (schema, bytes) = written(&Cart { total: 5 });
    assert_eq!(CartV3::upgrade(&bytes, &schema).unwrap(), upgraded);
    let (schema, bytes) = written(&CartV2 { totals: vec![5] });
    assert_eq!(CartV3::upgrade(&bytes, &schema).unwrap(), upgraded);
    let (schema, bytes) = written(&WithoutNote { totals: [("x".to_owned(), 1)].into() });
    let by_name = CartV3 { totals: [("x".to_owned(), 1)].into(), note: String::new() };
    assert_eq!(CartV3::upgrade(&bytes, &schema).unwrap(), by_name);
}

#[test]
fn fingerprints_are_frozen() {
    let prints = [Schema::of::<()>(), Schema::of::<v1::Cart>(), Schema::of::<Everything>()];
    assert_eq!(
        prints.map(|schema| schema.fingerprint()),
        [3685390413631870213, 2369401990508806584, 18315854553104781184]
    );
}

#[test]
fn a_fingerprint_sees_shapes_and_field_names_but_not_type_names() {
    mod renamed {
        use super::data;
        #[data]
        pub(super) struct Wood {
            value: i32,
            left: Option<Box<Wood>>,
            right: Option<Box<Wood>>,
        }
    }
    #[data]
    struct Swapped {
        value: i32,
        right: Option<Box<Swapped>>,
        left: Option<Box<Swapped>>,
    }
    let of_tree = Schema::of::<Tree>().fingerprint();
    assert_eq!(of_tree, Schema::of::<renamed::Wood>().fingerprint());
    assert_ne!(of_tree, Schema::of::<Swapped>().fingerprint());
    assert_ne!(Schema::of::<u32>().fingerprint(), Schema::of::<u64>().fingerprint());
    assert_ne!(Schema::of::<(u8, u8)>().fingerprint(), Schema::of::<(u8, u8, u8)>().fingerprint());
}

#[test]
fn two_types_of_one_name_are_kept_apart() {
    let schema = Schema::of::<(v1::Line, v2::Line, v1::Line)>();
    let named = |name: &str| Type::Named(name.to_owned());
    assert_eq!(schema.root, Type::Tuple(vec![named("Line"), named("Line#2"), named("Line")]));
    assert_ne!(schema.types.by_name["Line"], schema.types.by_name["Line#2"]);
}

#[test]
fn a_recursive_type_refers_to_itself() {
    let schema = Schema::of::<Tree>();
    assert_eq!(schema.types.by_name.len(), 1);
    let Shape::Struct(fields) = &schema.types.by_name["Tree"] else { panic!() };
    assert_eq!(fields[1].ty, Type::Option(Box::new(Type::Named("Tree".to_owned()))));
}

#[test]
fn nesting_and_lengths_are_limited() {
    let deep = |levels: usize| {
        (1..levels).fold(Tree::default(), |tree, _| Tree { left: Some(Box::new(tree)), ..Tree::default() })
    };
    let fits = deep(DEPTH_MAX / 2);
    assert_eq!(evolve::<_, Tree>(&fits).unwrap(), fits);
    let (schema, bytes) = written(&deep(DEPTH_MAX));
    let within = |error: &SchemaError| {
        let mut error = error;
        while let SchemaError::Within { source, .. } = error {
            error = source;
        }
        error.clone()
    };
    assert_eq!(within(&schema.read::<Tree>(&bytes).unwrap_err()), SchemaError::TooDeep);
    assert_eq!(schema.to_json(&bytes), Err(SchemaError::TooDeep));

    let endless = Schema {
        root: Type::Named("A".into()),
        types: {
            let mut types = perennial::schema::Types::default();
            types.by_name.insert("A".into(), Shape::Newtype(Type::Named("A".into())));
            types
        },
        replaces: Vec::new(),
    };
    assert_eq!(endless.to_json(&[]), Err(SchemaError::TooDeep));

    let huge = postcard::to_stdvec(&u64::MAX).unwrap();
    for schema in [Schema::of::<Vec<()>>(), Schema::of::<Vec<u64>>(), Schema::of::<BTreeMap<u8, u8>>()] {
        assert_eq!(schema.to_json(&huge), Err(SchemaError::Length { len: u64::MAX, left: 0 }));
    }
    assert!(Schema::of::<String>().to_json(&huge).is_err());
}

#[test]
fn a_stored_schema_that_nests_too_deeply_is_refused() {
    let option = |depth: usize| {
        let mut bytes = vec![9; depth];
        bytes.extend([0, 0, 0]);
        Schema::decode(&bytes)
    };
    assert!(option(DEPTH_MAX).is_ok());
    assert!(matches!(option(DEPTH_MAX + 1), Err(SchemaError::Bytes(_))));
    assert!(option(1 << 20).is_err());
    let mut trailing = postcard::to_stdvec(&Schema::of::<u8>()).unwrap();
    trailing.push(0);
    assert_eq!(Schema::decode(&trailing), Err(SchemaError::BytesLeft(1)));
}

#[test]
fn a_schema_cannot_ask_for_more_values_than_the_bytes_pay_for() {
    // Each type holds the next one twice, and the last holds nothing: no bytes, 2^40 values.
    let mut schema =
        Schema { root: Type::Named("0".to_owned()), types: Default::default(), replaces: Vec::new() };
    for n in 0..40 {
        let next = Type::Named((n + 1).to_string());
        schema.types.by_name.insert(n.to_string(), Shape::Tuple(vec![next.clone(), next]));
    }
    schema.types.by_name.insert("40".to_owned(), Shape::Unit);
    assert_eq!(innermost(schema.check(&[]).unwrap_err()), SchemaError::TooMany);
    assert_eq!(innermost(schema.to_json(&[]).unwrap_err()), SchemaError::TooMany);
    let _ = schema.fingerprint();
    // Two bytes for each of 4095 empty values.
    let units = Schema::of::<Vec<Vec<()>>>();
    let bytes = [&[0xe8, 0x07][..], &[0xff, 0x1f].repeat(1000)].concat();
    assert_eq!(innermost(units.check(&bytes).unwrap_err()), SchemaError::TooMany);
    assert!(units.check(&[2, 3, 3]).is_ok());
}

#[test]
fn a_long_chain_of_named_types_has_a_fingerprint() {
    let mut schema =
        Schema { root: Type::Named("0".to_owned()), types: Default::default(), replaces: Vec::new() };
    for n in 0..10_000 {
        let next = Type::Option(Box::new(Type::Named((n + 1).to_string())));
        schema.types.by_name.insert(n.to_string(), Shape::Newtype(next));
    }
    let _ = schema.fingerprint();
    assert!(schema.check(&[1; 200]).is_err());
}

fn innermost(error: SchemaError) -> SchemaError {
    match error {
        SchemaError::Within { source, .. } => innermost(*source),
        error => error,
    }
}

#[test]
fn types_that_few_bytes_can_blow_up_are_known() {
    assert!(Schema::of::<Tree>().is_explosive());
    assert!(Schema::of::<Vec<()>>().is_explosive());
    assert!(Schema::of::<BTreeMap<u8, Vec<Marker>>>().is_explosive());
    assert!(Schema::of::<BTreeMap<(), Marker>>().is_explosive());
    assert!(!Schema::of::<Option<Vec<(Marker, Id)>>>().is_explosive());
    assert!(!Schema::of::<Vec<Entry>>().is_explosive());
}

/// As [`evolve`], but as a state is read: nothing may be lost.
fn read_whole<Old: Data, New: Data>(old: &Old) -> Result<New, String> {
    let (schema, bytes) = written(old);
    let stored = postcard::to_stdvec(&schema).unwrap();
    New::upgrade(&bytes, &Schema::decode(&stored).unwrap()).map_err(|error| error.to_string())
}

mod whole {
    use super::*;

    #[data]
    pub(super) struct Old {
        pub(super) kept: BTreeMap<u8, Inner>,
        pub(super) gone: Vec<Inner>,
        pub(super) choice: Choice,
    }
    #[data]
    pub(super) struct Inner {
        pub(super) number: i16,
        pub(super) deep: Option<Deep>,
    }
    #[data]
    pub(super) struct Deep {
        pub(super) text: String,
        pub(super) more: u8,
    }
    #[data]
    pub(super) enum Choice {
        None,
        Some { a: u8, b: u8 },
    }
    pub(super) fn old(choice: Choice, deep: bool) -> Old {
        let deep = deep.then(|| Deep { text: "t".into(), more: 3 });
        let inner = || Inner { number: -5, deep: deep.clone() };
        Old { kept: [(1, inner())].into(), gone: vec![inner()], choice }
    }
}

#[test]
fn nothing_that_is_stored_is_left_out_unless_it_is_given_up() {
    use whole::{Choice, old};
    mod careless {
        use super::*;
        #[data]
        pub(super) struct New {
            pub(super) kept: BTreeMap<u8, super::whole::Inner>,
            pub(super) choice: super::whole::Choice,
        }
    }
    #[data(removed(gone))]
    struct New {
        kept: BTreeMap<u16, Inner>,
        choice: Choice2,
    }
    #[data]
    struct Inner {
        deep: Option<Deep>,
        number: i64,
    }
    #[data]
    struct Deep {
        text: String,
    }
    #[data(removed(Some.b))]
    enum Choice2 {
        Some { a: u16 },
        None,
        Other,
    }
    let lost = read_whole::<_, careless::New>(&old(Choice::None, false)).unwrap_err();
    assert!(lost.starts_with("gone: it is stored, and the type has no place for it"), "{lost}");
    // What is nowhere in the state is not missed.
    let expected = |choice| New { kept: [(1, Inner { deep: None, number: -5 })].into(), choice };
    assert_eq!(read_whole(&old(Choice::None, false)), Ok(expected(Choice2::None)));
    assert_eq!(read_whole(&old(Choice::Some { a: 1, b: 2 }, false)), Ok(expected(Choice2::Some { a: 1 })));
    let lost = read_whole::<_, New>(&old(Choice::None, true)).unwrap_err();
    assert!(lost.starts_with("kept: a value: deep: more: it is stored"), "{lost}");
    // Whoever only looks may leave things out.
    assert_eq!(evolve::<_, New>(&old(Choice::None, true)).unwrap().choice, Choice2::None);
}

#[test]
fn a_build_knows_that_a_state_is_newer_than_its_own_type() {
    let upgraded = CartV3 { totals: [("0".to_owned(), 5)].into(), note: "upgraded".into() };
    let newer = |read: Result<CartV2, String>| {
        assert!(read.as_ref().is_err_and(|why| why.starts_with("a newer build wrote it")), "{read:?}");
    };
    // Even when the names and shapes would fit.
    #[data(upgrade_from = CartV2)]
    struct Doubled {
        totals: VecDeque<u64>,
    }
    impl From<CartV2> for Doubled {
        fn from(old: CartV2) -> Self {
            Self { totals: old.totals.into_iter().map(|total| u64::from(total) * 2).collect() }
        }
    }
    newer(read_whole(&upgraded));
    newer(read_whole(&Doubled { totals: [4].into() }));
    assert_eq!(Schema::of::<CartV3>().replaces.len(), 2, "the whole line of types");
}

#[test]
fn states_of_between_are_upgraded_as_what_they_are() {
    // Euros at first, then with a note, then cents.
    mod euros {
        use super::*;
        #[data]
        pub(super) struct First {
            pub(super) amount: u16,
        }
        #[data]
        pub(super) struct Old {
            pub(super) amount: u32,
            #[serde(default)]
            pub(super) note: String,
        }
    }
    #[data(upgrade_from = euros::Old)]
    struct Cents {
        amount: u64,
        note: String,
    }
    #[data(upgrade_from = euros::Old)]
    struct Later {
        amount: u64,
        note: String,
        #[serde(default)]
        added: bool,
    }
    impl From<euros::Old> for Cents {
        fn from(old: euros::Old) -> Self {
            Self { amount: u64::from(old.amount) * 100, note: old.note }
        }
    }
    impl From<euros::Old> for Later {
        fn from(old: euros::Old) -> Self {
            Self { amount: u64::from(old.amount) * 100, note: old.note, added: false }
        }
    }
    // Older than the type that is named: it is that one, by name, and then converted.
    let cents = Cents { amount: 700, note: String::new() };
    assert_eq!(read_whole(&euros::First { amount: 7 }), Ok(cents.clone()));
    // Written after the conversion, before a field was added: it is not converted again.
    assert_eq!(read_whole(&cents), Ok(Later { amount: 700, note: String::new(), added: false }));
    let old = euros::Old { amount: 7, note: "n".into() };
    assert_eq!(read_whole(&old), Ok(Later { amount: 700, note: "n".into(), added: false }));
}
