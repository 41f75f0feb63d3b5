#include "api/codec.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/transitions_same.h"

#define ID   "\"9b2d1c5e-0f4a-4f0b-8c3e-2f6a7b8c9d01\""
#define ID2  "\"9b2d1c5e-0f4a-4f0b-8c3e-2f6a7b8c9d02\""
#define HEAD "{\"boot_id\":\"b\",\"epoch\":3,\"items\":["
#define VM   "{\"vm\":" ID ","
#define END  "}]}"

/* Every decoder under one signature: is it taken? */
typedef bool (*take_fn)(const char *text, size_t len, struct codec_fault *why);
#define TAKE(name)                                                                     \
	static bool take_##name(const char *text, size_t len, struct codec_fault *why) \
	{                                                                              \
		struct name##_body body;                                               \
		struct body *owner;                                                    \
		bool ok = codec_##name(text, len, &body, &owner, why);                 \
                                                                                       \
		cr_assert(ok || !owner);                                               \
		codec_release(owner);                                                  \
		return ok;                                                             \
	}
TAKE(host)
TAKE(current)
TAKE(empty)
TAKE(fence)
TAKE(frames)
TAKE(pool)
TAKE(vm)
TAKE(slot)
TAKE(lifecycle)
TAKE(transitions)
TAKE(operation)
TAKE(result)
TAKE(token)
TAKE(backup)

static const struct {
	take_fn take;
	const char *text;
} good[] = {
	{ take_host,
	  "{\"name\":\"h\",\"boot_id\":\"b\",\"backends\":[{\"arch\":\"pef\",\"kind\":\"emulated\",\"x\":[1.5]}],"
	  "\"pools\":[{\"pool\":\"local\",\"base_pfn\":0,\"frames\":1048576}]}" },
	{ take_host, "{\"name\":\"\xc3\xa9\",\"boot_id\":\"b\",\"backends\":[],\"pools\":[],\"agent_version\":\"1\"}" },
	{ take_current, "{\"boot_id\":\"b\",\"epoch\":9223372036854775807}" },
	{ take_empty, "" },
	{ take_empty, " {} " },
	{ take_fence, "" },
	{ take_fence, "{\"force\":true}" },
	{ take_frames, "{\"items\":[{\"pool\":\"local\",\"pfn\":1099511627775,\"count\":1}]}" },
	{ take_frames, "{\"boot_id\":\"b\",\"epoch\":1,\"items\":[{\"pool\":\"x\",\"pfn\":1,\"count\":1099511627775,"
		       "\"reason\":\"r\"}]}" },
	{ take_pool, "{\"base_pfn\":0,\"frames\":1,\"page_shift\":16,\"hosts\":[" ID "," ID2 "]}" },
	{ take_vm, "{\"host\":" ID ",\"arch\":\"tdx\",\"slots\":[{\"slot\":0,\"base_gfn\":0,\"pages\":1}],"
		   "\"gpa\":{\"shared_bit\":47}}" },
	{ take_vm, "{\"id\":" ID ",\"name\":\"v\",\"host\":" ID ",\"arch\":\"kvm\",\"slots\":[]}" },
	{ take_slot, "{\"base_gfn\":0,\"pages\":1}" },
	{ take_lifecycle, "{\"event\":\"init_start\"}" },
	{ take_lifecycle, "{\"event\":\"terminate\",\"boot_id\":\"b\",\"epoch\":0}" },
	{ take_operation, "{\"kind\":\"launch\"}" },
	{ take_operation, "{\"kind\":\"share\",\"params\":{\"gfn\":1,\"count\":2}}" },
	{ take_result, "{\"boot_id\":\"b\",\"epoch\":1,\"state\":\"failed\",\"problem\":{\"a\":1}}" },
	{ take_token, "{\"role\":\"agent\",\"host\":" ID ",\"name\":\"n\"}" },
	{ take_token, "{\"role\":\"viewer\",\"name\":\"n\"}" },
	{ take_backup, "{\"name\":\"a-1\"}" },
	{ take_transitions, HEAD VM "\"op\":\"cca.realm_activate\"" END },
	{ take_transitions, HEAD VM "\"op\":\"snp.pvalidate\",\"gfn\":1,\"count\":2" END },
	{ take_transitions, HEAD VM "\"op\":\"snp.rmpupdate\",\"gfns\":[1,2]" END },
	{ take_transitions, HEAD VM "\"op\":\"snp.rmpupdate\",\"runs\":[[1,2,3]],\"pool\":\"local\"" END },
	{ take_transitions, HEAD VM "\"op\":\"share\",\"gfn\":1,\"count\":1099511627775" END },
	{ take_transitions, HEAD VM "\"op\":\"unshare\",\"gfn\":0,\"count\":1" END },
	{ take_transitions, HEAD VM "\"op\":\"unshare\",\"gfns\":[1],\"pfns\":[2],\"pool\":\"local\"" END },
	{ take_transitions, HEAD VM "\"op\":\"page_out\",\"runs\":[[1,2],[5,1]]" END },
	{ take_transitions, HEAD VM "\"op\":\"page_in\",\"runs\":[[1,2,3]],\"pool\":\"local\"" END },
};

static const struct {
	take_fn take;
	const char *text, *pointer;
} bad[] = {
	/* no JSON, or not the contract's kind of it */
	{ take_current, "", "" },
	{ take_current, "{", "" },
	{ take_current, "[]", "" },
	{ take_current, "null", "" },
	{ take_current, "{} {}", "" },
	{ take_empty, "[]", "" },
	{ take_fence, "{\"force\":1}", "/force" },
	{ take_empty, " ", "" },
	{ take_empty, "{\"a\":1}", "/a" },
	{ take_empty, "{\"a/b~c\":1}", "/a~1b~0c" },
	{ take_current, "{\"boot_id\":\"\xff\",\"epoch\":1}", "/boot_id" },
	{ take_current, "{\"boot_id\":\"\\ud800\",\"epoch\":1}", "/boot_id" },
	{ take_current, "{\"boot_id\":\"\\u0000\",\"epoch\":1}", "/boot_id" },
	{ take_current, "{\"boot_id\":\"b\",\"epoch\":1,\"epoch\":1}", "/epoch" },
	{ take_current, "{\"boot_id\":\"b\",\"epoch\":1,\"x\":[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]}",
	  "/x/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0" },
	/* members */
	{ take_current, "{\"boot_id\":\"b\",\"epoch\":1,\"more\":1}", "/more" },
	{ take_current, "{\"epoch\":1}", "/boot_id" },
	{ take_current, "{\"boot_id\":\"b\"}", "/epoch" },
	/* numbers */
	{ take_current, "{\"boot_id\":\"b\",\"epoch\":\"1\"}", "/epoch" },
	{ take_current, "{\"boot_id\":\"b\",\"epoch\":1.0}", "/epoch" },
	{ take_current, "{\"boot_id\":\"b\",\"epoch\":1e3}", "/epoch" },
	{ take_current, "{\"boot_id\":\"b\",\"epoch\":-1}", "/epoch" },
	{ take_current, "{\"boot_id\":\"b\",\"epoch\":9223372036854775808}", "/epoch" },
	{ take_current, "{\"boot_id\":\"b\",\"epoch\":null}", "/epoch" },
	{ take_current, "{\"boot_id\":\"b\",\"epoch\":true}", "/epoch" },
	{ take_current, "{\"boot_id\":\"b\",\"epoch\":01}", "/epoch" },
	/* text */
	{ take_current, "{\"boot_id\":\"\",\"epoch\":1}", "/boot_id" },
	{ take_current, "{\"boot_id\":\"\xc3\xa9\",\"epoch\":1}", "/boot_id" },
	{ take_current, "{\"boot_id\":\"a\\nb\",\"epoch\":1}", "/boot_id" },
	{ take_current,
	  "{\"boot_id\":\"12345678901234567890123456789012345678901234567890123456789012345\",\"epoch\":1}",
	  "/boot_id" },
	{ take_token, "{\"role\":\"viewer\",\"name\":\"\"}", "/name" },
	{ take_token, "{\"role\":\"viewer\",\"name\":\"a\\u0007b\"}", "/name" },
	{ take_token, "{\"role\":\"viewer\",\"name\":\"a\\u0085b\"}", "/name" },
	{ take_token, "{\"role\":\"viewer\",\"name\":7}", "/name" },
	/* hosts */
	{ take_host, "{\"name\":\"h\",\"boot_id\":\"b\",\"backends\":{},\"pools\":[]}", "/backends" },
	{ take_host, "{\"name\":\"h\",\"boot_id\":\"b\",\"backends\":[1],\"pools\":[]}", "/backends/0" },
	{ take_host, "{\"name\":\"h\",\"boot_id\":\"b\",\"backends\":[{\"arch\":\"z\",\"kind\":\"kvm\"}],\"pools\":[]}",
	  "/backends/0/arch" },
	{ take_host, "{\"name\":\"h\",\"boot_id\":\"b\",\"backends\":[{\"arch\":\"snp\"}],\"pools\":[]}",
	  "/backends/0/kind" },
	{ take_host,
	  "{\"name\":\"h\",\"boot_id\":\"b\",\"backends\":[{\"arch\":\"snp\",\"kind\":\"real\"}],\"pools\":[]}",
	  "/backends/0/kind" },
	{ take_host, "{\"name\":\"h\",\"boot_id\":\"b\",\"backends\":[]}", "/pools" },
	{ take_host,
	  "{\"name\":\"h\",\"boot_id\":\"b\",\"backends\":[],\"pools\":[{\"pool\":\"cxl\",\"base_pfn\":0,"
	  "\"frames\":1}]}",
	  "/pools/0/pool" },
	{ take_host,
	  "{\"name\":\"h\",\"boot_id\":\"b\",\"backends\":[],\"pools\":[{\"pool\":\"local\",\"base_pfn\":2,"
	  "\"frames\":1099511627775}]}",
	  "/pools/0/frames" },
	{ take_host,
	  "{\"name\":\"h\",\"boot_id\":\"b\",\"backends\":[],\"pools\":[{\"pool\":\"local\",\"base_pfn\":1,"
	  "\"frames\":0}]}",
	  "/pools/0/frames" },
	{ take_host,
	  "{\"name\":\"h\",\"boot_id\":\"b\",\"backends\":[],\"pools\":[{\"pool\":\"local\",\"base_pfn\":1,"
	  "\"frames\":1,\"page_shift\":11}]}",
	  "/pools/0/page_shift" },
	/* frames and pools */
	{ take_frames, "{\"items\":[]}", "/items" },
	{ take_frames, "{\"boot_id\":\"b\",\"items\":[{\"pool\":\"local\",\"pfn\":1,\"count\":1}]}", "/epoch" },
	{ take_frames, "{\"epoch\":1,\"items\":[{\"pool\":\"local\",\"pfn\":1,\"count\":1}]}", "/boot_id" },
	{ take_frames, "{\"items\":[{\"pool\":\"LOCAL\",\"pfn\":1,\"count\":1}]}", "/items/0/pool" },
	{ take_frames, "{\"items\":[{\"pool\":\"local\",\"pfn\":1099511627776,\"count\":1}]}", "/items/0/pfn" },
	{ take_frames, "{\"items\":[{\"pool\":\"local\",\"pfn\":1099511627775,\"count\":2}]}", "/items/0/count" },
	{ take_pool, "{\"base_pfn\":0,\"frames\":1,\"hosts\":[\"x\"]}", "/hosts/0" },
	{ take_pool, "{\"base_pfn\":0,\"frames\":1,\"hosts\":[" ID "," ID "]}", "/hosts" },
	{ take_pool, "{\"base_pfn\":9,\"frames\":1099511627775,\"hosts\":[]}", "/frames" },
	/* VMs */
	{ take_vm, "{\"host\":\"9B2D1C5E-0F4A-4F0B-8C3E-2F6A7B8C9D01\",\"arch\":\"tdx\",\"slots\":[]}", "/host" },
	{ take_vm, "{\"host\":" ID ",\"arch\":\"sgx\",\"slots\":[]}", "/arch" },
	{ take_vm, "{\"host\":" ID ",\"arch\":\"tdx\",\"slots\":[{\"slot\":-1,\"base_gfn\":0,\"pages\":1}]}",
	  "/slots/0/slot" },
	{ take_vm, "{\"host\":" ID ",\"arch\":\"tdx\",\"slots\":[{\"slot\":1,\"base_gfn\":2,\"pages\":1099511627775}]}",
	  "/slots/0/pages" },
	{ take_vm, "{\"host\":" ID ",\"arch\":\"tdx\",\"slots\":[],\"gpa\":{}}", "/gpa/shared_bit" },
	{ take_vm, "{\"host\":" ID ",\"arch\":\"tdx\",\"slots\":[],\"gpa\":{\"shared_bit\":64}}", "/gpa/shared_bit" },
	{ take_vm, "{\"host\":" ID ",\"arch\":\"tdx\",\"slots\":[],\"gpa\":7}", "/gpa" },
	{ take_slot, "{\"base_gfn\":2,\"pages\":1099511627775}", "/pages" },
	{ take_lifecycle, "{\"event\":\"stop\"}", "/event" },
	{ take_lifecycle, "{\"event\":\"start\",\"epoch\":1}", "/boot_id" },
	/* operations, tokens, backups */
	{ take_operation, "{\"kind\":\"reboot\"}", "/kind" },
	{ take_operation, "{\"kind\":\"launch\",\"params\":[]}", "/params" },
	{ take_result, "{\"boot_id\":\"b\",\"epoch\":1,\"state\":\"running\"}", "/state" },
	{ take_result, "{\"boot_id\":\"b\",\"epoch\":1,\"state\":\"succeeded\",\"problem\":{}}", "/problem" },
	{ take_token, "{\"role\":\"root\",\"name\":\"n\"}", "/role" },
	{ take_token, "{\"role\":\"agent\",\"name\":\"n\"}", "/host" },
	{ take_token, "{\"role\":\"viewer\",\"name\":\"n\",\"host\":" ID "}", "/host" },
	{ take_backup, "{\"name\":\"../x\"}", "/name" },
	/* transitions */
	{ take_transitions, "{\"boot_id\":\"b\",\"epoch\":1,\"items\":[]}", "/items" },
	{ take_transitions, "{\"boot_id\":\"b\",\"epoch\":1,\"items\":[1]}", "/items/0" },
	{ take_transitions, "{\"boot_id\":\"b\",\"epoch\":1,\"atomic\":1,\"items\":[]}", "/atomic" },
	{ take_transitions, "{\"boot_id\":\"b\",\"epoch\":1,\"batch_seq\":-1,\"items\":[]}", "/batch_seq" },
	{ take_transitions, HEAD VM "\"op\":\"steal\",\"gfn\":0,\"count\":1" END, "/items/0/op" },
	{ take_transitions, HEAD VM "\"op\":\"snp.rmpsteal\",\"gfn\":0,\"count\":1" END, "/items/0/op" },
	{ take_transitions, HEAD VM "\"op\":\"snp.\",\"gfn\":0,\"count\":1" END, "/items/0/op" },
	{ take_transitions, HEAD VM "\"op\":\"snp.launch_finish\",\"gfn\":0,\"count\":1" END, "/items/0/gfn" },
	{ take_transitions, HEAD VM "\"op\":\"snp.launch_finish\",\"count\":1" END, "/items/0/count" },
	{ take_transitions, HEAD VM "\"op\":\"snp.launch_finish\",\"pool\":\"local\"" END, "/items/0/pool" },
	{ take_transitions, HEAD VM "\"op\":\"\",\"gfn\":0,\"count\":1" END, "/items/0/op" },
	{ take_transitions, HEAD VM "\"op\":7,\"gfn\":0,\"count\":1" END, "/items/0/op" },
	{ take_transitions, HEAD VM "\"op\":\"pef.h_svm_page_in\",\"gfn\":0,\"count\":1" END, "/items/0/frame" },
	{ take_transitions, HEAD VM "\"op\":\"pef.h_svm_page_in\",\"gfns\":[0]" END, "/items/0/pfns" },
	{ take_transitions, HEAD VM "\"op\":\"snp.pvalidate\",\"runs\":[[0,1,2]],\"pool\":\"local\"" END,
	  "/items/0/runs" },
	{ take_transitions, HEAD VM "\"op\":\"share\"" END, "/items/0" },
	{ take_transitions, HEAD VM "\"op\":\"share\",\"gfn\":0" END, "/items/0/count" },
	{ take_transitions, HEAD VM "\"op\":\"share\",\"count\":1" END, "/items/0/gfn" },
	{ take_transitions, HEAD VM "\"op\":\"share\",\"gfn\":0,\"count\":1099511627776" END, "/items/0/count" },
	{ take_transitions, HEAD VM "\"op\":\"share\",\"runs\":[[0,1099511627776]]" END, "/items/0/runs/0/1" },
	{ take_transitions, HEAD VM "\"op\":\"share\",\"gfn\":0,\"count\":0" END, "/items/0/count" },
	{ take_transitions, HEAD VM "\"op\":\"share\",\"gfn\":2,\"count\":1099511627775" END, "/items/0/count" },
	{ take_transitions, HEAD VM "\"op\":\"share\",\"gfn\":1099511627776,\"count\":1" END, "/items/0/gfn" },
	{ take_transitions, HEAD VM "\"op\":\"share\",\"gfn\":0,\"count\":1,\"more\":1" END, "/items/0/more" },
	{ take_transitions, HEAD VM "\"op\":\"share\",\"gfn\":0,\"count\":1,\"gfns\":[1]" END, "/items/0/gfns" },
	{ take_transitions, HEAD VM "\"op\":\"share\",\"gfns\":[1],\"runs\":[[1,1]]" END, "/items/0/gfns" },
	{ take_transitions, HEAD VM "\"op\":\"page_in\",\"gfn\":0,\"count\":1" END, "/items/0/frame" },
	{ take_transitions,
	  HEAD VM "\"op\":\"share\",\"gfn\":0,\"count\":1,\"frame\":{\"pool\":\"local\",\"pfn\":1}" END,
	  "/items/0/frame" },
	{ take_transitions, HEAD VM "\"op\":\"page_out\",\"runs\":[[0,1,2]],\"pool\":\"local\"" END, "/items/0/runs" },
	{ take_transitions, HEAD VM "\"op\":\"page_in\",\"gfn\":0,\"count\":1,\"frame\":{\"pool\":\"local\"}" END,
	  "/items/0/frame/pfn" },
	{ take_transitions,
	  HEAD VM "\"op\":\"page_in\",\"gfn\":0,\"count\":2,\"frame\":{\"pool\":\"local\","
		  "\"pfn\":1099511627775}" END,
	  "/items/0/frame/pfn" },
	{ take_transitions, HEAD VM "\"op\":\"page_in\",\"gfn\":0,\"count\":2,\"frame\":7" END, "/items/0/frame" },
	{ take_transitions,
	  HEAD VM "\"op\":\"page_in\",\"gfn\":0,\"count\":1,\"pool\":\"local\",\"frame\":{\"pool\":"
		  "\"local\",\"pfn\":1}" END,
	  "/items/0/pool" },
	{ take_transitions, HEAD VM "\"op\":\"page_in\",\"runs\":[[0,1]]" END, "/items/0/runs" },
	{ take_transitions, HEAD VM "\"op\":\"page_in\",\"runs\":[[0,1,2]]" END, "/items/0/pool" },
	{ take_transitions, HEAD VM "\"op\":\"unshare\",\"runs\":[[0,1]],\"pool\":\"local\"" END, "/items/0/pool" },
	{ take_transitions, HEAD VM "\"op\":\"share\",\"runs\":[]" END, "/items/0/runs" },
	{ take_transitions, HEAD VM "\"op\":\"share\",\"runs\":[[1,1],[2]]" END, "/items/0/runs/1" },
	{ take_transitions, HEAD VM "\"op\":\"share\",\"runs\":[[1,1],[2,1,3]]" END, "/items/0/runs/1" },
	{ take_transitions, HEAD VM "\"op\":\"share\",\"runs\":[[1,1],[2,0]]" END, "/items/0/runs/1/1" },
	{ take_transitions, HEAD VM "\"op\":\"share\",\"runs\":[[1,1],[2,1099511627775]]" END, "/items/0/runs/1/1" },
	{ take_transitions, HEAD VM "\"op\":\"share\",\"runs\":[[1,1],[\"2\",1]]" END, "/items/0/runs/1/0" },
	{ take_transitions, HEAD VM "\"op\":\"page_in\",\"pool\":\"local\",\"runs\":[[1,2,1099511627775]]" END,
	  "/items/0/runs/0/2" },
	{ take_transitions, HEAD VM "\"op\":\"share\",\"gfns\":[]" END, "/items/0/gfns" },
	{ take_transitions, HEAD VM "\"op\":\"share\",\"gfns\":[1,2.5]" END, "/items/0/gfns/1" },
	{ take_transitions, HEAD VM "\"op\":\"page_in\",\"gfns\":[1]" END, "/items/0/pfns" },
	{ take_transitions, HEAD VM "\"op\":\"page_in\",\"gfns\":[1],\"pfns\":[2]" END, "/items/0/pool" },
	{ take_transitions, HEAD VM "\"op\":\"page_in\",\"gfns\":[1],\"pfns\":[2,3],\"pool\":\"local\"" END,
	  "/items/0/pfns" },
	{ take_transitions, HEAD VM "\"op\":\"page_in\",\"gfns\":[1],\"pfns\":[-2],\"pool\":\"local\"" END,
	  "/items/0/pfns/0" },
	{ take_transitions, HEAD VM "\"op\":\"share\",\"gfn\":1,\"count\":1},{\"vm\":1,\"op\":\"share\"" END,
	  "/items/1/vm" },
};

Test(codec, takes_what_the_contract_allows)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(good); i++) {
		struct codec_fault why = { .detail = "" };

		cr_expect(good[i].take(good[i].text, strlen(good[i].text), &why), "%s: %s: %s", good[i].text,
			  why.pointer, why.detail);
	}
}

Test(codec, refuses_wrong_input_and_points_at_it)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(bad); i++) {
		struct codec_fault why = { .detail = "" };
		bool ok = bad[i].take(bad[i].text, strlen(bad[i].text), &why);

		cr_expect(!ok, "taken: %s", bad[i].text);
		cr_expect_str_eq(why.pointer, bad[i].pointer, "%s: \"%s\" (%s), not \"%s\"", bad[i].text, why.pointer,
				 why.detail, bad[i].pointer);
		cr_expect(!why.no_memory && why.detail[0]);
	}
}

Test(codec, refuses_every_prefix_of_a_good_body)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(good); i++)
		for (size_t n = 1; n < strlen(good[i].text); n++) {
			struct codec_fault why;
			char *part = strndup(good[i].text, n); /* so that reading on shows under a sanitizer */

			cr_expect(!good[i].take(part, n, &why) || good[i].take == take_empty, "%s", part);
			free(part);
		}
}

Test(codec, names_the_offending_value)
{
	static const char text[] = "{\"boot_id\":\"b\",\"epoch\":-17}";
	struct codec_fault why;

	cr_assert(!take_current(text, sizeof text - 1, &why));
	cr_assert_not_null(strstr(why.detail, "-17"), "%s", why.detail);
}

Test(codec, gives_a_pointer_that_is_utf8_however_long_the_key)
{
	char text[1200] = "{\"";
	size_t n = 2;
	struct codec_fault why;

	for (; n < 1000; n += 2)
		memcpy(text + n, "\xc3\xa9", 2);
	memcpy(text + n, "\":1}", 4);
	cr_assert(!take_empty(text, n + 4, &why));
	n = strlen(why.pointer);
	cr_assert(n > 200 && (n - 1) % 2 == 0, "%zu", n);
}

Test(codec, reads_a_host)
{
	static const char text[] =
		"{\"name\":\"h\",\"boot_id\":\"b\",\"backends\":[{\"arch\":\"pef\",\"kind\":\"emulated\"},"
		"{\"arch\":\"kvm\", \"kind\":\"kvm\", \"x\":{}}],\"agent_version\":\"1\","
		"\"pools\":[{\"pool\":\"local\",\"base_pfn\":3,\"frames\":4,\"page_shift\":16}]}";
	struct codec_fault why;
	struct host_body host;
	struct body *owner;

	cr_assert(codec_host(text, sizeof text - 1, &host, &owner, &why));
	cr_assert_str_eq(host.name, "h");
	cr_assert_str_eq(host.agent_version, "1");
	cr_assert_str_eq(host.backends, "[{\"arch\":\"pef\",\"kind\":\"emulated\"},"
					"{\"arch\":\"kvm\",\"kind\":\"kvm\",\"x\":{}}]");
	cr_assert_eq(host.arches, 1u << ARCH_PEF | 1u << ARCH_KVM);
	cr_assert(host.has_local && host.base == 3 && host.frames == 4 && host.page_shift == 16);
	codec_release(owner);
}

Test(codec, reads_a_vm)
{
	static const char text[] =
		"{\"host\":" ID ",\"arch\":\"tdx\",\"slots\":[{\"slot\":7,\"base_gfn\":8,\"pages\":9}],"
		"\"gpa\":{\"shared_bit\":47}}";
	struct codec_fault why;
	struct vm_body vm;
	struct body *owner;

	cr_assert(codec_vm(text, sizeof text - 1, &vm, &owner, &why));
	cr_assert(!vm.has_id && !vm.name && vm.host.b[0] == 0x9b && vm.arch == ARCH_TDX && vm.shared_bit == 47);
	cr_assert(vm.slot_count == 1 && vm.slots[0].number == 7 && vm.slots[0].base == 8 && vm.slots[0].pages == 9);
	codec_release(owner);
}

Test(codec, reads_every_form_of_item)
{
	static const char text[] =
		"{\"boot_id\":\"b\",\"epoch\":3,\"batch_seq\":4,\"atomic\":true,\"items\":[" VM
		"\"op\":\"page_in\",\"gfn\":1,\"count\":2,\"frame\":{\"pool\":\"local\",\"pfn\":3}}," VM
		"\"op\":\"unshare\",\"runs\":[[1,2,3],[4,5,6]],\"pool\":\"cxl-0\"}," VM
		"\"op\":\"share\",\"gfns\":[7,8]}]}";
	struct transitions_body fast, strict;
	struct body *owner[2];
	struct codec_fault why;

	cr_assert(transitions_fast(text, sizeof text - 1, &fast, &owner[0]));
	cr_assert(transitions_strict(text, sizeof text - 1, &strict, &owner[1], &why), "%s", why.detail);
	cr_assert(same_body(&fast, &strict));
	cr_assert(strict.epoch == 3 && strict.has_seq && strict.seq == 4 && strict.atomic && strict.count == 3);
	cr_assert(strict.items[0].framed && strict.items[0].runs[0].pfn == 3 && strict.items[0].runs[0].count == 2);
	cr_assert(strict.items[1].op == GFN_UNSHARE && strict.items[1].framed && strict.items[1].run_count == 2);
	cr_assert_str_eq(strict.items[1].pool, "cxl-0");
	cr_assert_eq(strict.items[1].runs[1].pfn, 6);
	cr_assert(!strict.items[2].framed && strict.items[2].run_count == 2 && strict.items[2].runs[1].gfn == 8);
	codec_release(owner[0]);
	codec_release(owner[1]);
}

Test(codec, finds_the_row_that_frames_or_their_absence_choose)
{
	static const char text[] =
		HEAD VM "\"op\":\"snp.rmpupdate\",\"gfn\":1,\"count\":2,\"frame\":{\"pool\":\"local\",\"pfn\":3}}," VM
			"\"op\":\"snp.rmpupdate\",\"gfns\":[7,8]}," VM "\"gfn\":1,\"count\":2,\"op\":\"share\"}," VM
			"\"gfn\":1,\"count\":2,\"op\":\"snp.rmpupdate\"" END;
	struct transitions_body fast, strict;
	struct body *owner[2];
	struct codec_fault why;

	cr_assert(transitions_fast(text, sizeof text - 1, &fast, &owner[0]));
	cr_assert(transitions_strict(text, sizeof text - 1, &strict, &owner[1], &why), "%s", why.detail);
	cr_assert(same_body(&fast, &strict));
	for (size_t i = 0; i < 4; i++) {
		const struct item *it = &strict.items[i];

		cr_assert_str_eq(item_op_name(it), i == 2 ? "share" : "snp.rmpupdate");
		cr_assert_eq(it->arch_law, i == 2 ? NULL : arch_laws[ARCH_SNP]);
		cr_assert(it->framed == (i == 0) && (i == 2 || it->arch_op->framed == it->framed));
	}
	codec_release(owner[0]);
	codec_release(owner[1]);
}

Test(codec, takes_65536_items_and_no_more)
{
	static const char item[] = VM "\"op\":\"share\",\"gfn\":1,\"count\":1}";
	size_t room = sizeof HEAD + (CODEC_ITEMS_MAX + 1) * sizeof item + 8, n;
	char *text = malloc(room);

	cr_assert_not_null(text);
	for (unsigned more = 0; more < 2; more++) {
		struct codec_fault why;

		n = (size_t)snprintf(text, room, "%s", HEAD);
		for (unsigned i = 0; i < CODEC_ITEMS_MAX + more; i++)
			n += (size_t)snprintf(text + n, room - n, "%s%s", i ? "," : "", item);
		n += (size_t)snprintf(text + n, room - n, "]}");
		cr_expect_eq(take_transitions(text, n, &why), more == 0);
		cr_expect(!more || strcmp(why.pointer, "/items") == 0);
	}
	free(text);
}

/* Property: the decoders agree on good bodies, on their mutations, and on bodies with space in odd places. */
static uint64_t seed;
static unsigned below(unsigned n)
{
	seed = seed * 6364136223846793005u + 1442695040888963407u;
	return (unsigned)(seed >> 33) % n;
}

static void mutate(char *text, size_t *n)
{
	static const char *const words[] = { " ",
					     ",",
					     "[",
					     "]",
					     "{",
					     "}",
					     "\"",
					     "\\",
					     "0",
					     "-",
					     "1.0",
					     "true",
					     "null",
					     "1099511627776",
					     "\"op\":\"share\",",
					     "\"op\":\"snp.pvalidate\",",
					     "snp.rmpupdate",
					     "snp.swap_in",
					     "\"count\":1,",
					     ":",
					     "\x01",
					     "\xff" };
	const char *word = words[below(PW_ARRAY_LEN(words))];
	size_t at = below((unsigned)*n), len = strlen(word);

	if (below(2)) { /* over what is there, or else between it */
		if (at + len > *n)
			return;
	} else {
		memmove(text + at + len, text + at, *n - at);
		*n += len;
	}
	memcpy(text + at, word, len);
}

Test(codec, has_two_decoders_of_transitions_that_agree)
{
	unsigned seen[NEITHER_TOOK + 1] = { 0 };

	seed = 20260101;
	for (unsigned round = 0; round < 200000; round++) {
		size_t i = PW_ARRAY_LEN(good) - 8 + below(8), n = strlen(good[i].text);
		char text[512], *exact;
		enum agreement how;

		memcpy(text, good[i].text, n);
		for (unsigned k = below(4); k > 0; k--)
			mutate(text, &n);
		exact = malloc(n);
		cr_assert_not_null(exact);
		memcpy(exact, text, n);
		how = decoders_agree(exact, n);
		free(exact);
		cr_assert_neq(how, DISAGREE, "round %u: %.*s", round, (int)n, text);
		seen[how]++;
	}
	cr_assert(seen[BOTH_TOOK] > 50000 && seen[NEITHER_TOOK] > 50000, "%u both, %u strict, %u neither",
		  seen[BOTH_TOOK], seen[STRICT_TOOK], seen[NEITHER_TOOK]);
}

Test(codec, names_what_it_lists)
{
	enum operation_kind kind;
	enum operation_state state;
	enum role role;

	for (int i = 0; i < OPERATION_KIND_COUNT; i++)
		cr_expect(operation_kind_from_name(operation_kind_name((enum operation_kind)i), &kind) &&
			  (int)kind == i);
	for (int i = 0; i < OPERATION_STATE_COUNT; i++)
		cr_expect(operation_state_from_name(operation_state_name((enum operation_state)i), &state) &&
			  (int)state == i);
	for (int i = 0; i < ROLE_COUNT; i++)
		cr_expect(role_from_name(role_name((enum role)i), &role) && (int)role == i);
	cr_expect(!operation_kind_from_name("Launch", &kind) && !operation_state_from_name("", &state) &&
		  !role_from_name("root", &role));
	cr_expect(codec_is_pool_name("cxl-0") && !codec_is_pool_name("") && !codec_is_pool_name("a_b"));
	cr_expect(!codec_is_pool_name("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")); /* 64 */
}

Test(codec, an_object_has_only_so_many_members_and_no_value_is_looked_at_before)
{
	static char text[20000];
	struct codec_fault why;
	size_t n = 0;

	n += (size_t)snprintf(text, sizeof text, "{\"a\":[{\"x\":%s", "nonsense");
	for (int i = 0; i < 1100; i++)
		n += (size_t)snprintf(text + n, sizeof text - n, ",\"k%d\":1", i);
	n += (size_t)snprintf(text + n, sizeof text - n, "}]}");
	cr_assert_not(take_current(text, n, &why));
	cr_assert(strstr(why.detail, "more than 1024 members") && strcmp(why.pointer, "/a/0") == 0, "%s at %s",
		  why.detail, why.pointer);
}

Test(codec, the_values_of_a_body_have_a_bound_in_bytes)
{
	static char text[40000] = "{\"boot_id\":\"b\",\"epoch\":1,\"x\":[[]";
	struct codec_fault why;
	size_t head = strlen(text);

	for (size_t i = 0; i < 9000; i++)
		memcpy(text + head + i * 3, ",[]", 4);
	memcpy(text + head + 27000, "]}", 3);
	codec_limit_decoded(100000);
	cr_expect_not(take_current(text, strlen(text), &why));
	cr_expect(why.problem == PROBLEM_TOO_MUCH_WORK && why.limit == 100000 && !why.no_memory, "%s", why.detail);
	codec_limit_decoded(SIZE_MAX);
	cr_expect_not(take_current(text, strlen(text), &why));
	cr_expect(why.problem == PROBLEM_NONE && strcmp(why.pointer, "/x") == 0, "%s", why.detail);
}
