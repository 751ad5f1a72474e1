	; The entry point at 0x100 jumps over the header to the stack's setting and main.
	.module crt0
	.globl _main
	.area _HEADER (ABS)
	.org 0x100
	nop
	jp 0x150
	.org 0x150
	di
	ld sp, #0xDFFF
	call _main
1$:	jr 1$
