/* libpq's pipeline mode, single rows, chunks of COPY, cancel. Connects as the environment says; one line per step. */
#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static PGconn *c;

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s", what, PQerrorMessage(c));
	exit(1);
}

static void must(int ok, const char *what)
{
	if (!ok)
		fail(what);
}

/* All results up to the next NULL: their states, tags, first values and SQLSTATEs. */
static int show(const char *step)
{
	PGresult *r;
	int n = 0;

	while ((r = PQgetResult(c)) != NULL) {
		const char *state = PQresultErrorField(r, PG_DIAG_SQLSTATE);
		ExecStatusType status = PQresultStatus(r);

		printf("[\"%s\", \"%s %s %s %s\"]\n", step, PQresStatus(status), PQcmdStatus(r), state ? state : "-",
			   PQntuples(r) ? PQgetvalue(r, 0, 0) : "-");
		PQclear(r);
		n++;
		if (status == PGRES_PIPELINE_SYNC)
			break;
	}
	return n;
}

static void send1(const char *sql, const char *value)
{
	must(PQsendQueryParams(c, sql, value ? 1 : 0, NULL, value ? &value : NULL, NULL, NULL, 0), sql);
}

/* One NULL ends each query's results; the sync has none. */
static void shows(const char *step, int queries)
{
	for (int i = 0; i < queries; i++)
		show(step);
}

int main(void)
{
	printf("[\"version\", \"%d\"]\n", PQlibVersion());
	c = PQconnectdb("");
	must(PQstatus(c) == CONNECTION_OK, "connect");
	PQclear(PQexec(c, "set client_min_messages = warning; drop table if exists matrix_libpq"));
	PQclear(PQexec(c, "create table matrix_libpq(id int primary key, word text)"));

	must(PQenterPipelineMode(c), "pipeline mode");
	for (int i = 0; i < 5; i++) {
		char id[12];

		snprintf(id, sizeof id, "%d", i);
		send1("insert into matrix_libpq values ($1, 'w') returning id", id);
	}
	must(PQpipelineSync(c), "sync");
	shows("inserts", 5);
	show("sync");

	/* An error in the middle: what follows is skipped up to the sync, and all of it is undone. */
	send1("insert into matrix_libpq values (10)", NULL);
	send1("select 1/0", NULL);
	send1("insert into matrix_libpq values (11)", NULL);
	must(PQpipelineSync(c), "sync");
	send1("select count(*) from matrix_libpq", NULL);
	must(PQpipelineSync(c), "sync");
	shows("an error", 3);
	show("sync");
	show("after it");
	show("sync");

	/* Answers before the sync. */
	send1("select 'flushed'", NULL);
	must(PQsendFlushRequest(c), "flush request");
	must(PQflush(c) == 0, "flush");
	show("flush");
	send1("select 'more'", NULL);
	must(PQpipelineSync(c), "sync");
	show("more");
	show("sync");

	/* Prepared and described in one go, used twice, closed by SQL. */
	must(PQsendPrepare(c, "named", "select $1::int * 2", 0, NULL), "prepare");
	must(PQsendDescribePrepared(c, "named"), "describe");
	for (int i = 1; i < 3; i++) {
		char v[12];
		const char *values[1] = {v};

		snprintf(v, sizeof v, "%d", i);
		must(PQsendQueryPrepared(c, "named", 1, values, NULL, NULL, 0), "execute");
	}
	send1("deallocate named", NULL);
	must(PQpipelineSync(c), "sync");
	shows("prepared", 5);
	show("sync");

	/* A transaction over several syncs. */
	send1("begin", NULL);
	must(PQpipelineSync(c), "sync");
	send1("update matrix_libpq set word = 'changed' where id = $1", "3");
	must(PQpipelineSync(c), "sync");
	send1("rollback", NULL);
	send1("select word from matrix_libpq where id = $1", "3");
	must(PQpipelineSync(c), "sync");
	show("begin");
	show("sync");
	show("update");
	show("sync");
	shows("rollback", 2);
	show("sync");

	/* 20,000 queries in one pipeline, read as they come. */
	must(PQsetnonblocking(c, 1) == 0, "nonblocking");
	int sent = 0, got = 0, done = 0;
	while (!done) {
		while (sent < 20000 && sent - got < 500) {
			send1("select 1", NULL);
			if (++sent % 100 == 0)
				must(PQpipelineSync(c), "sync");
		}
		must(PQflush(c) >= 0, "flush");
		must(PQconsumeInput(c), "input");
		while (!PQisBusy(c)) {
			PGresult *r = PQgetResult(c);

			if (r == NULL)
				break;
			if (PQresultStatus(r) == PGRES_TUPLES_OK)
				got++;
			else if (PQresultStatus(r) == PGRES_PIPELINE_SYNC)
				done = got == 20000;
			else
				fail("a query of many");
			PQclear(r);
		}
	}
	must(PQsetnonblocking(c, 0) == 0, "blocking");
	printf("[\"many\", \"%d\"]\n", got);
	must(PQexitPipelineMode(c), "leave the pipeline");

	/* Row by row. */
	must(PQsendQuery(c, "select generate_series(1, 1000)"), "send");
	must(PQsetSingleRowMode(c), "single rows");
	int rows = 0;
	for (PGresult *r; (r = PQgetResult(c)) != NULL; PQclear(r))
		rows += PQresultStatus(r) == PGRES_SINGLE_TUPLE;
	printf("[\"single rows\", \"%d\"]\n", rows);

	/* COPY, refused by the client. */
	PQclear(PQexec(c, "copy matrix_libpq from stdin"));
	PQputCopyData(c, "100\tx\n", 6);
	PQputCopyEnd(c, "changed my mind");
	show("copy refused");
	PQclear(PQexec(c, "copy matrix_libpq from stdin"));
	PQputCopyData(c, "100\tx\n", 6);
	PQputCopyEnd(c, NULL);
	show("copy");

	/* Cancel. */
	must(PQsendQuery(c, "select pg_sleep(60)"), "send");
	/* A request that comes before its statement has begun does nothing. */
	usleep(500000);
	PGcancel *cancel = PQgetCancel(c);
	char error[256];
	must(PQcancel(cancel, error, sizeof error), "cancel");
	PQfreeCancel(cancel);
	show("cancelled");

	/* Function call. */
	int length, value;
	PQArgBlock arguments[2] = {{4, 1, {.integer = 20}}, {4, 1, {.integer = 22}}};
	PGresult *r = PQfn(c, 177, &value, &length, 1, arguments, 2);
	printf("[\"function\", \"%s %d\"]\n", PQresStatus(PQresultStatus(r)), value);
	PQclear(r);
	PQclear(PQexec(c, "drop table matrix_libpq"));
	PQfinish(c);
	return 0;
}
