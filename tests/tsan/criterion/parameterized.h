#include <criterion/criterion.h> /* it has both */
