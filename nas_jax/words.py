"""Numbers in words, for messages, tables and pages."""


def counted(number: int, one: str, many: str = '') -> str:
  """Returns a number with its noun, such as '1 training' or '1,296 trainings'; from a million on as '6.34e+16'."""
  digits = f'{number:,}' if number < 10**6 else f'{number:.2e}'
  return f'{digits} {one if number == 1 else many or one + "s"}'
