/* The agent's file of figures: whole after each write, and replaced only by a whole one. */
#include "agents/figures.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agents/machine.h"

static const struct pw_uuid A = { { 1 } };
static struct pw_err err;
static char dir[] = "/tmp/pw-figures-XXXXXX", path[64];

static void begin(void)
{
	cr_assert(mkdtemp(dir));
	snprintf(path, sizeof path, "%s/rmp.prom", dir);
}

static void end(void)
{
	unlink(path);
	cr_expect_eq(rmdir(dir), 0, "nothing is left beside it");
}

static struct backend *open_machine(const struct machine_model *model)
{
	struct backend_options o = { .frames = 64, .traced = true };
	struct backend *b = NULL;

	cr_assert_eq(machine_open(model, &o, &b, &err), PW_OK, "%s", err.msg);
	return b;
}

static char *file_text(void)
{
	static char text[8192];
	FILE *f = fopen(path, "r");

	cr_assert(f);
	text[fread(text, 1, sizeof text - 1, f)] = '\0';
	fclose(f);
	return text;
}

static void start_vm(struct backend *b)
{
	struct slot s = { 0, 0, 16 };
	struct backend_vm_spec spec = { .id = A, .slots = &s, .slot_count = 1 };

	cr_assert_eq(b->ops->create_vm(b, &spec, &err), PW_OK);
	cr_assert_eq(b->ops->vm_event(b, &A, VM_INIT_START, &err), PW_OK, "%s", err.msg);
}

Test(figures, are_written_as_prometheus_reads_them, .init = begin, .fini = end)
{
	static const char head[] = "# HELP pagewarden_rmp_transitions_total Frames whose RMP entry an instruction or "
				   "firmware command changed, by state before and after.\n"
				   "# TYPE pagewarden_rmp_transitions_total counter\n"
				   "pagewarden_rmp_transitions_total{host=\"h\",from=\"Hypervisor\",to=\"Firmware\"} ";
	static const char last[] =
		"\npagewarden_rmp_transitions_total{host=\"h\",from=\"Firmware\",to=\"Context\"} 1\n";
	struct backend *b = open_machine(&machine_snp);
	char *text;

	cr_assert_eq(figures_write(path, "h", b, &err), PW_OK, "%s", err.msg);
	cr_expect_null(strstr(file_text(), "Context"));
	start_vm(b);
	cr_assert_eq(figures_write(path, "h", b, &err), PW_OK, "%s", err.msg);
	text = file_text();
	cr_expect_eq(strncmp(text, head, sizeof head - 1), 0, "%s", text);
	cr_expect_gt(strtoul(text + sizeof head - 1, NULL, 10), 1);
	cr_expect_str_eq(strchr(text + sizeof head - 1, '\n'), last);
	b->ops->close(b);
}

Test(figures, of_hardware_that_does_not_count_are_an_empty_file, .init = begin, .fini = end)
{
	struct backend *b = open_machine(&machine_pef);

	cr_assert_eq(figures_write(path, "h", b, &err), PW_OK, "%s", err.msg);
	cr_expect_str_eq(file_text(), "");
	b->ops->close(b);
}

Test(figures, go_through_injected_faults, .init = begin, .fini = end)
{
	struct backend *b;

	cr_assert_eq(backend_faulty_wrap(open_machine(&machine_snp), "share:1", &b, &err), PW_OK);
	cr_assert_eq(figures_write(path, "h", b, &err), PW_OK, "%s", err.msg);
	cr_expect_neq(strlen(file_text()), 0);
	b->ops->close(b);
}

/* The old file stays, and nothing beside it. */
Test(figures, that_cannot_be_written_say_where, .init = begin, .fini = end)
{
	struct backend *b = open_machine(&machine_snp);
	char missing[80], tmp[80];

	cr_assert_eq(figures_write(path, "old", b, &err), PW_OK);
	snprintf(tmp, sizeof tmp, "%s.tmp", path);
	cr_assert_eq(mkdir(tmp, 0700), 0);
	cr_expect_eq(figures_write(path, "new", b, &err), PW_STORAGE);
	cr_expect(strstr(err.msg, path) && strstr(err.msg, "Is a directory"), "%s", err.msg);
	cr_expect(strstr(file_text(), "host=\"old\""));
	cr_assert_eq(rmdir(tmp), 0);
	snprintf(missing, sizeof missing, "%s/none/x", dir);
	cr_expect_eq(figures_write(missing, "new", b, &err), PW_STORAGE);
	cr_expect(strstr(err.msg, "/none/x: No such file"), "%s", err.msg);
	b->ops->close(b);
}
