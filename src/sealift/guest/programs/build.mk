# Builds the programs that run inside guests. The outputs are committed, so a compiler is needed only to change them.
#
#   make -C src/sealift/guest/programs -f build.mk            rebuild in place and record what did it
#   make -C src/sealift/guest/programs -f build.mk OUT=DIR    build elsewhere, to compare
#
# The same compiler gives the same bytes: no build id, no paths, no dates.

CC := gcc
OUT := .

CFLAGS := -std=gnu11 -O2 -Wall -Wextra -Werror -ffreestanding -fno-ident -march=x86-64 -mgeneral-regs-only \
	-mno-red-zone -mcmodel=small -fno-pic -fno-pie -fno-stack-protector -fcf-protection=none \
	-fno-asynchronous-unwind-tables -fno-strict-aliasing
LDFLAGS := -nostdlib -static -no-pie \
	-Wl,--build-id=none,-z,noexecstack,-z,max-page-size=4096,--no-warn-rwx-segments,--fatal-warnings

RUNTIME := runtime.c sha256.c
HEADERS := machine.h runtime.h sha256.h pages.h
PROGRAMS := $(OUT)/startup.bin $(OUT)/ledger.elf $(OUT)/idle.elf $(OUT)/writer.elf $(OUT)/linuxload

all: $(PROGRAMS) $(OUT)/PROVENANCE.md

$(OUT)/startup.bin: startup.S startup.c es.c startup.ld machine.h ghcb.h build.mk
	$(CC) $(CFLAGS) $(LDFLAGS) -Wl,--oformat=binary -T startup.ld -o $@ startup.S startup.c es.c
	chmod 644 $@

$(OUT)/ledger.elf: ledger.c pages.c flips.c content.c $(RUNTIME) $(HEADERS) flips.h content.h kernel.ld build.mk
	$(CC) $(CFLAGS) $(LDFLAGS) -T kernel.ld -o $@ ledger.c flips.c content.c pages.c $(RUNTIME)
	chmod 644 $@

$(OUT)/idle.elf: idle.c $(RUNTIME) $(HEADERS) kernel.ld build.mk
	$(CC) $(CFLAGS) $(LDFLAGS) -T kernel.ld -o $@ idle.c $(RUNTIME)
	chmod 644 $@

$(OUT)/writer.elf: writer.c pages.c $(RUNTIME) $(HEADERS) kernel.ld build.mk
	$(CC) $(CFLAGS) $(LDFLAGS) -T kernel.ld -o $@ writer.c pages.c $(RUNTIME)
	chmod 644 $@

# Runs under Linux, so Linux chooses where it lies. Of the runtime it takes what needs no ports.
$(OUT)/linuxload: linuxload.c linux.h content.c content.h runtime.c $(HEADERS) build.mk
	$(CC) $(CFLAGS) -ffunction-sections $(LDFLAGS) -Wl,--gc-sections,-s -o $@ linuxload.c content.c runtime.c
	chmod 644 $@

# What built the committed outputs; the test compares bytes only under the same versions.
$(OUT)/PROVENANCE.md: $(PROGRAMS)
	{ echo '# Where the guest programs come from'; echo; \
	  echo 'Built from the sources in this folder by `build.mk`, which also writes this page.'; echo; \
	  echo "- compiler: $$($(CC) --version | head -n 1)"; \
	  echo "- linker: $$($(CC) -nostdlib -Wl,--version 2>/dev/null | head -n 1)"; echo; \
	  echo '| SHA-256 | file |'; echo '|---|---|'; \
	  cd $(OUT) && sha256sum $(notdir $(PROGRAMS)) | sed 's/\(.*\)  \(.*\)/| \1 | \2 |/'; } > $@

.PHONY: all
