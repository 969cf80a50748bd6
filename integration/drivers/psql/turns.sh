#!/bin/sh
# Turns with psql, until the file MATRIX_STOP exists. See turns.rs. Usage: turns.sh PSQL
remember='\set failed :ERROR
\set state :SQLSTATE
\set message :LAST_ERROR_MESSAGE'

turn() {
    insert="insert into matrix_turns values ('psql', $1);"
    case $2 in
        write) printf '%s\n' "\\set missing off" "$insert" "$remember" "\\set last $1" ;;
        block) printf '%s\n' "\\set missing off" 'begin;' "$insert" '\if :ERROR' "$remember" 'rollback;' \
            '\else' 'commit;' "$remember" "\\set last $1" '\endif' ;;
        read) printf '%s\n' 'select count(*) <> 1 as missing from matrix_turns where driver = '"'psql'"' and turn = :last \gset' "$remember" ;;
    esac
    printf '%s\n' '\if :failed' "\\echo error $1 $2 :state :message" '\set last :acknowledged' \
        '\elif :missing' "\\echo missing $1 $2" '\else' "\\echo ok $1 $2" '\endif' '\set acknowledged :last'
}

turns() {
    printf '%s\n' '\set last -1' '\set acknowledged -1'
    n=0
    while [ ! -e "$MATRIX_STOP" ]; do
        case $((n % 3)) in 0) turn $n write ;; 1) turn $n block ;; *) turn $n read ;; esac
        n=$((n + 1))
        sleep 0.02
    done
}

turns | "$1" -X -q 2>&1 | while IFS= read -r line; do
    case $line in
        # It has connected again, or given up.
        *'onnection to'*'was lost'*) echo closed ;;
        # Anything else is the server's error, of which the script tells what counts.
        'ok '* | 'error '* | 'missing '* | 'psql: '*) printf '%s\n' "$line" ;;
    esac
done
