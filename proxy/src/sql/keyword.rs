//! The keywords that classification looks at, and which of them may stand before `(` without being a function.
//!
//! Source: PostgreSQL documentation, Appendix C; src/include/parser/kwlist.h and gram.y of versions 13 to 18.

/// A keyword of interest, or [`Keyword::None`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[rustfmt::skip]
pub(super) enum Keyword {
    None,
    Abort, All, Analyze, And, As, Begin, Call, Chain, Characteristics, Close, Commit, Committed, Constraints, Copy, Create,
    Deallocate, Declare, Deferrable, Delete, Discard, Do, Drop, End, Execute, Explain, For, From, Global, Hold, Insert, Into, Key, Listen, Load, Local, Merge,
    No, Not, Only, Or, Prepare, Prepared, Read, Recursive, Release, Repeatable, Replace, Reset, Rollback, Savepoint, Select, Serializable, Session, Set,
    Share, Show, Start, Stdout, Table, Tablesample, Temp, To, Transaction, Uncommitted, Unlisten, Update, Values, Verbose, With, Work, Write,
}

/// The keyword that a word in lower case is.
#[rustfmt::skip]
pub(super) fn keyword(lower: &[u8]) -> Keyword {
    use Keyword as K;
    match lower {
        b"as" => K::As, b"do" => K::Do, b"no" => K::No, b"or" => K::Or, b"to" => K::To,
        b"all" => K::All, b"and" => K::And, b"end" => K::End, b"for" => K::For, b"key" => K::Key, b"not" => K::Not, b"set" => K::Set,
        b"call" => K::Call, b"copy" => K::Copy, b"drop" => K::Drop, b"from" => K::From, b"hold" => K::Hold, b"into" => K::Into, b"load" => K::Load,
        b"only" => K::Only, b"read" => K::Read, b"show" => K::Show, b"temp" => K::Temp, b"with" => K::With,
        b"work" => K::Work,
        b"abort" => K::Abort, b"begin" => K::Begin, b"close" => K::Close, b"reset" => K::Reset, b"chain" => K::Chain, b"local" => K::Local, b"merge" => K::Merge,
        b"share" => K::Share, b"start" => K::Start, b"table" => K::Table, b"write" => K::Write,
        b"commit" => K::Commit, b"create" => K::Create, b"delete" => K::Delete, b"global" => K::Global,
        b"insert" => K::Insert, b"listen" => K::Listen, b"select" => K::Select, b"stdout" => K::Stdout,
        b"stdin" => K::Stdout, b"update" => K::Update, b"values" => K::Values,
        b"analyze" | b"analyse" => K::Analyze, b"declare" => K::Declare, b"discard" => K::Discard,
        b"execute" => K::Execute, b"explain" => K::Explain, b"prepare" => K::Prepare, b"release" => K::Release, b"replace" => K::Replace,
        b"session" => K::Session, b"verbose" => K::Verbose,
        b"prepared" => K::Prepared, b"rollback" => K::Rollback, b"unlisten" => K::Unlisten,
        b"committed" => K::Committed, b"deferrable" => K::Deferrable, b"repeatable" => K::Repeatable,
        b"serializable" => K::Serializable, b"uncommitted" => K::Uncommitted,
        b"recursive" => K::Recursive, b"savepoint" => K::Savepoint, b"temporary" => K::Temp,
        b"deallocate" => K::Deallocate,
        b"constraints" => K::Constraints, b"tablesample" => K::Tablesample, b"transaction" => K::Transaction,
        b"characteristics" => K::Characteristics,
        _ => K::None,
    }
}

/// Words that the grammar takes for itself before `(`: reserved words, which no unquoted function can be named, and
/// constructs in the form of functions that write nothing. Not among them: `treat`, which calls a cast function, and
/// `substring` and `overlay`, which are looked up like any function when called with commas.
#[rustfmt::skip]
pub(super) fn is_reserved_before_parenthesis(lower: &[u8]) -> bool {
    matches!(
        lower,
        b"as" | b"in" | b"on" | b"or" | b"to" | b"all" | b"and" | b"any" | b"bit" | b"dec" | b"end" | b"for" | b"int"
        | b"not" | b"row" | b"both" | b"case" | b"cast" | b"char" | b"else" | b"from" | b"null" | b"only" | b"real"
        | b"some" | b"then" | b"time" | b"trim" | b"when" | b"with" | b"array" | b"fetch" | b"float" | b"group"
        | b"least" | b"limit" | b"nchar" | b"order" | b"table" | b"union" | b"using" | b"where" | b"xmlpi"
        | b"bigint" | b"except" | b"exists" | b"having" | b"nullif" | b"offset" | b"select" | b"values" | b"window"
        | b"between" | b"boolean" | b"collate" | b"decimal" | b"default" | b"extract" | b"integer" | b"lateral"
        | b"leading" | b"numeric" | b"varchar" | b"xmlroot" | b"coalesce" | b"distinct" | b"greatest" | b"grouping"
        | b"interval" | b"national" | b"position" | b"smallint" | b"trailing" | b"variadic" | b"xmlparse"
        | b"xmltable" | b"character" | b"intersect" | b"normalize" | b"returning" | b"symmetric" | b"timestamp"
        | b"xmlconcat" | b"xmlexists" | b"xmlforest" | b"asymmetric" | b"xmlelement" | b"xmlserialize"
        | b"xmlattributes" | b"xmlnamespaces" | b"current_time" | b"current_timestamp" | b"localtime" | b"localtimestamp"
    )
}

/// Words that the grammar may take for itself before `(`, but that a function can be named as well, in some version at
/// least: a call unless the catalog is known and knows no volatile function of that name.
#[rustfmt::skip]
pub(super) fn may_stand_before_parenthesis(lower: &[u8]) -> bool {
    matches!(
        lower,
        b"by" | b"is" | b"cube" | b"join" | b"like" | b"next" | b"over" | b"sets" | b"zone" | b"first" | b"ilike"
        | b"escape" | b"filter" | b"rollup" | b"operator" | b"overlaps" | b"repeatable" | b"materialized"
        | b"varying" | b"recursive" | b"second" | b"columns" | b"json" | b"json_array" | b"json_arrayagg" | b"json_exists"
        | b"json_objectagg" | b"json_query" | b"json_scalar" | b"json_serialize" | b"json_table" | b"json_value"
    )
}
