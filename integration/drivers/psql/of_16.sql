-- What psql 16 and later have beyond commands.sql, which includes this; its table is there.
\echo ==== bind
select $1::int + $2 as sum \bind 3 4 \g
select id, word from matrix_psql where id = $1 \bind 2 \gx
select 1 as nothing_to_bind \bind \g
select $1 as word \bind 'two words' \g (format=unaligned tuples_only=on)
select word as bound_word, $2 as bound from matrix_psql where id = $1 \bind 3 'it''s' \gset
\echo :bound_word :bound
select format('select %s as made', $1) from generate_series(1, 2) \bind 5 \gexec
select id % 2 as odd, kind, count(*) from matrix_psql where id < $1 group by 1, 2 order by 1, 2 \bind 9 \crosstabview
select $1::int as a, $2 as b \bind 1 2 \gdesc
select $1 as a \bind \g
select 1 as a \bind 5 \g
select $1::int as a \bind x \g
select 1 / $1::int as a \bind 0 \g
\errverbose
select $1 as a \; select 2 as b \bind 1 \g
insert into matrix_psql values ($1, $2) returning id, word \bind 400 bound \g
insert into matrix_psql values ($1) \bind 400 \g
copy (select id, word from matrix_psql where id < 3 order by id) to stdout \bind \g
copy matrix_psql(id, word) from stdin \bind \g
401	copied
\.
\set FETCH_COUNT 5
select id from matrix_psql where id > $1 order by id \bind 3 \g
select 1 / (id - $1) from matrix_psql where id < 20 order by id \bind 8 \g
\unset FETCH_COUNT
\set AUTOCOMMIT off
insert into matrix_psql values ($1) \bind 402 \g
rollback \bind \g
\set AUTOCOMMIT on
begin \bind \g
insert into matrix_psql values ($1) \bind 403 \g
select 1 / $1::int as a \bind 0 \g
select $1 as a \bind 1 \g
commit \bind \g
\set ON_ERROR_ROLLBACK on
begin;
insert into matrix_psql values ($1) \bind 404 \g
select 1 / $1::int as a \bind 0 \g
commit;
\set ON_ERROR_ROLLBACK off
select id from matrix_psql where id >= $1 order by id \bind 400 \g
prepare bound(int) as select word from matrix_psql where id = $1;
execute bound(400) \bind \g
set work_mem = '5MB' \bind \g
show work_mem \bind \g
reset work_mem \bind \g
deallocate bound \bind \g
\t on
select $1 \bind again \watch c=2 i=0.01
\t off
\echo ==== others
\t on
select 'counted' \watch c=3 i=0.01
\t off
\dpS pg_class
\zS pg_class
\drg
\drgS pg_monitor
\pset xheader_width 20
\x on
select id, word, repeat('x', 40) as long from matrix_psql where id = 1;
\x off
\pset xheader_width full
\! exit 3
\echo :SHELL_ERROR :SHELL_EXIT_CODE
\set shell `exit 0`
\echo :SHELL_ERROR :SHELL_EXIT_CODE
\dn+ matrix*
\dconfig+ work_mem
\df+ matrix_touch
