\echo ["version", :VERSION_NAME
\pset pager off
\set VERBOSITY verbose
\set SHOW_CONTEXT errors
drop table if exists matrix_psql cascade;
create table matrix_psql(id int primary key, word text default 'w' check (length(word) < 100), kind char(1));
create index on matrix_psql(word);
create view matrix_view as select * from matrix_psql;
create function matrix_function(a int) returns int language sql as 'select a + 1';
comment on table matrix_psql is 'a table';
insert into matrix_psql select n, 'word ' || n, chr(97 + n % 3) from generate_series(1, 12) n;
\d matrix_psql
\d+ matrix_view
\dt matrix*
\di matrix*
\dv matrix*
\df matrix*
\sf matrix_function
\sv matrix_view
\dn
\du app
\dp matrix_psql
\ddp
\dT
\dD
\dx
\dF
\dy
\dRp
\dRs
\dd matrix*
\dl
\dC int4
\dO "C"
\drds
\dconfig work_mem
\db
\dA
\da sum
\do ||
\des
\encoding
select kind, count(*) from matrix_psql group by 1 order by 1 \g
select id, word from matrix_psql where id = 1 \gx
select word as first_word, id as first_id from matrix_psql order by id limit 1 \gset
\echo :first_word :first_id
select format('select %s as made', n) from generate_series(1, 3) n \gexec
select id, word, kind from matrix_psql limit 0 \gdesc
select id % 2 as odd, kind, count(*) from matrix_psql group by 1, 2 order by 1, 2 \crosstabview
\copy (select * from matrix_psql order by id limit 2) to stdout csv header
copy matrix_psql from stdin;
100	copied	z
101	\N	z
\.
copy matrix_psql from stdin;
bad	line
\.
select count(*) from matrix_psql;
\set AUTOCOMMIT off
insert into matrix_psql values (200);
rollback;
\set AUTOCOMMIT on
select count(*) from matrix_psql where id = 200;
\set ON_ERROR_ROLLBACK on
begin;
select 1/0;
select 'goes on';
commit;
\set ON_ERROR_ROLLBACK off
\set FETCH_COUNT 5
select id from matrix_psql order by id;
\unset FETCH_COUNT
select 1/0;
\errverbose
select * from no_such;
begin;
declare c cursor for select id from matrix_psql order by id;
fetch 2 from c;
commit;
prepare p(int) as select word from matrix_psql where id = $1;
execute p(3);
deallocate p;
set datestyle = 'german';
show datestyle;
reset datestyle;
do $$ begin raise notice 'hello'; end $$;
\if true
select 'in an if';
\endif
\timing off
\z matrix_psql
\l app
\dg app
\dm
\ds
\dE
\dP
\dtS pg_class
\dS pg_am
\df+ matrix_function
\dfn matrix*
\dX
\dAc btree int4
\dAo btree int4
\dL
\det
\dew
\d pg_stat_activity
\! rm -f $PSQL_SCRATCH/psql_*; printf 'a large object' > $PSQL_SCRATCH/psql_lo
\set lo :scratch/psql_lo
\lo_import :lo 'kept'
select :LASTOID > 0 as imported \gset
\echo :imported
select convert_from(lo_get(:LASTOID), 'UTF8');
\set out :scratch/psql_lo.out
\lo_export :LASTOID :out
\! cat $PSQL_SCRATCH/psql_lo.out; echo
\lo_unlink :LASTOID
\o :out
select 'into a file';
\o
\! cat $PSQL_SCRATCH/psql_lo.out
\set file :scratch/psql_copy
\copy (select id, word from matrix_psql order by id limit 3) to :file
\copy matrix_psql(id) from program 'seq 300 305'
select count(*) from matrix_psql where id between 300 and 305;
\! printf 'select 42 as included;\n' > $PSQL_SCRATCH/psql_included
\set included :scratch/psql_included
\i :included
\encoding LATIN1
select 'w' || chr(246) || 'rd' = E'w\366rd' as latin;
\encoding UTF8
\pset format csv
select id, word from matrix_psql order by id limit 2;
\pset format aligned
\x on
select id, word from matrix_psql order by id limit 1;
\x off
\t on
select 'tuples only';
\t off
select 1 as a \; select 2 as b \; select 3 as c;
\set SHOW_ALL_RESULTS off
select 1 as a \; select 2 as b;
\echo :SQLSTATE :ERROR :ROW_COUNT
selec 1;
\echo :SQLSTATE :ERROR :LAST_ERROR_SQLSTATE
\set SINGLELINE on
select 'one line'
\set SINGLELINE off
begin;
declare held cursor with hold for select id from matrix_psql order by id;
commit;
fetch 2 from held;
close held;
set role none;
create temp table here(x int);
\d here
drop table here;
listen matrix;
notify matrix, 'payload';
select 'notified';
unlisten *;
drop table matrix_psql cascade;
drop function matrix_function;
