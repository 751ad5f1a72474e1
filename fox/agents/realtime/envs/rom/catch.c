/* CatchRT for the Game Boy: the integers of catch.py, one step per frame.
 *
 * Positions are those of the sprites: x = 8 and y = 16 is the screen's upper left corner. The game
 * goes on after the tenth miss; `over` only says that it has happened.
 */
#include <stdint.h>

#define REGISTER(address) (*(volatile uint8_t *)(address))
#define JOYPAD REGISTER(0xFF00)
#define INTERRUPT_FLAGS REGISTER(0xFF0F)
#define LCD_CONTROL REGISTER(0xFF40)
#define LCD_LINE REGISTER(0xFF44)
#define BACKGROUND_PALETTE REGISTER(0xFF47)
#define SPRITE_PALETTE REGISTER(0xFF48)
#define INTERRUPT_ENABLE REGISTER(0xFFFF)
#define VRAM ((volatile uint8_t *)0x8000)
#define SPRITES ((volatile uint8_t *)0xFE00)

/* What the host reads; it may set the seed. */
volatile __at(0xC0A0) uint16_t score;
volatile __at(0xC0A2) uint16_t misses;
volatile __at(0xC0A4) uint16_t frame;
volatile __at(0xC0A6) uint16_t seed;
volatile __at(0xC0A8) uint8_t bx;
volatile __at(0xC0A9) uint8_t by;
volatile __at(0xC0AA) uint8_t px;
volatile __at(0xC0AB) uint8_t over;

static uint8_t draw(void) {
    uint16_t s = seed;
    s ^= s << 7;
    s ^= s >> 9;
    s ^= s << 8;
    seed = s;
    return (uint8_t)s;
}

static void step(void) {
    uint8_t pressed, coarse;
    JOYPAD = 0x20; /* the direction keys; a pressed one reads 0 */
    pressed = JOYPAD;
    pressed = ~JOYPAD; /* the second reading has settled */
    if ((pressed & 1) && px < 144) px += 2;
    else if ((pressed & 2) && px > 8) px -= 2;
    if (++by >= 144) {
        if (bx + 8 > px && bx < px + 24) score++;
        else if (++misses == 10) over = 1;
        by = 16;
        coarse = draw() & 127;
        bx = 8 + coarse + (draw() & 15);
    }
    frame++;
}

static void sprite(uint8_t number, uint8_t x, uint8_t y) {
    volatile uint8_t *entry = SPRITES + 4 * number;
    entry[0] = y;
    entry[1] = x;
    entry[2] = 1;
    entry[3] = 0;
}

static void show(void) {
    sprite(0, bx, by);
    sprite(1, px, 152);
    sprite(2, px + 8, 152);
    sprite(3, px + 16, 152);
}

void main(void) {
    uint16_t i;
    while (LCD_LINE != 144) {} /* the screen may only be switched off between frames */
    LCD_CONTROL = 0;
    for (i = 0; i < 0x2000; i++) VRAM[i] = 0;
    for (i = 16; i < 32; i++) VRAM[i] = 0xFF; /* tile 1 is solid, tile 0 empty */
    for (i = 0; i < 160; i++) SPRITES[i] = 0;
    BACKGROUND_PALETTE = SPRITE_PALETTE = 0xE4;
    score = misses = frame = 0;
    seed = 0xACE1;
    bx = 80;
    by = 16;
    px = 76;
    over = 0;
    LCD_CONTROL = 0x93;
    INTERRUPT_ENABLE = 1; /* halt ends at the next vertical blank; interrupts stay masked */
    for (;;) {
        INTERRUPT_FLAGS = 0;
        __asm__("halt\n nop");
        step();
        show();
    }
}
